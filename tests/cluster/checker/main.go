// Checker reads a history of operations on registers from standard input and says whether it is linearizable.
//
//	checker [-timeout 2m] [-picture FILE] < history.json
//
// It exits with 0 when the history is linearizable, 1 when it is not, 2 on bad input, and 3 when time ran out.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	exitIllegal   = 1
	exitBadInput  = 2
	exitUndecided = 3
)

// Operation is one operation on one key. Times are in nanoseconds of one clock.
type Operation struct {
	Client int    `json:"client"`
	Key    string `json:"key"`
	// Kind is "read", "put", "swap" or "delete".
	Kind string `json:"kind"`
	// Value is what a put or a swap writes.
	Value string `json:"value"`
	// Expected is the revision that a swap's key must have; 0 when it must be absent.
	Expected int64 `json:"expected"`
	Call     int64 `json:"call"`
	Return   int64 `json:"return"`
	// Revision is the store's when the operation took place; of a write, the one that it made.
	Revision int64 `json:"revision"`
	// Wrote says whether the operation changed the key.
	Wrote bool `json:"wrote"`
	// Found is what a read, or a swap that wrote nothing, saw.
	Found *Version `json:"found"`
}

// Version is a value and the revision that wrote it.
type Version struct {
	Value    string `json:"value"`
	Revision int64  `json:"revision"`
}

// register is the state of one key.
type register struct {
	present bool
	version Version
	// touched is the revision of the last put or delete.
	touched int64
}

func (r register) is(found *Version) bool {
	if found == nil {
		return !r.present
	}
	return r.present && r.version == *found
}

func (r register) expected(revision int64) bool {
	if revision == 0 {
		return !r.present
	}
	return r.present && r.version.Revision == revision
}

// step tells whether an operation may take place in a state, and the state after it.
func step(r register, o Operation) (bool, register) {
	if !o.Wrote {
		// The store had reached the revision that the key shows.
		legal := o.Revision >= r.touched
		switch o.Kind {
		case "read":
			legal = legal && r.is(o.Found)
		case "swap":
			legal = legal && r.is(o.Found) && !r.expected(o.Expected)
		case "delete":
			legal = legal && !r.present
		default:
			legal = false
		}
		return legal, r
	}
	if o.Revision <= r.touched {
		return false, r
	}
	written := register{present: true, version: Version{o.Value, o.Revision}, touched: o.Revision}
	switch o.Kind {
	case "put":
		return true, written
	case "swap":
		return r.expected(o.Expected), written
	case "delete":
		return r.present, register{touched: o.Revision}
	default:
		return false, r
	}
}

var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := make(map[string][]porcupine.Operation)
		for _, one := range history {
			key := one.Input.(Operation).Key
			byKey[key] = append(byKey[key], one)
		}
		parts := make([][]porcupine.Operation, 0, len(byKey))
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return register{} },
	Step: func(state, input, _ any) (bool, any) {
		legal, next := step(state.(register), input.(Operation))
		return legal, next
	},
	DescribeOperation: func(input, _ any) string {
		text, err := json.Marshal(input)
		if err != nil {
			return err.Error()
		}
		return string(text)
	},
}

func main() {
	timeout := flag.Duration("timeout", 2*time.Minute, "how long to look before giving up")
	picture := flag.String("picture", "", "where to draw a history that is not linearizable")
	flag.Parse()
	var operations []Operation
	decoder := json.NewDecoder(os.Stdin)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&operations); err != nil {
		fmt.Println("bad input:", err)
		os.Exit(exitBadInput)
	}
	history := make([]porcupine.Operation, len(operations))
	for i, o := range operations {
		history[i] = porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Return: o.Return}
	}
	result, info := porcupine.CheckOperationsVerbose(model, history, *timeout)
	switch result {
	case porcupine.Ok:
		fmt.Println("linearizable:", len(history), "operations")
	case porcupine.Unknown:
		fmt.Println("undecided after", *timeout)
		os.Exit(exitUndecided)
	default:
		fmt.Println("not linearizable:", len(history), "operations")
		if *picture != "" {
			if err := porcupine.VisualizePath(model, info, *picture); err != nil {
				fmt.Println("no picture:", err)
			} else {
				fmt.Println("picture:", *picture)
			}
		}
		os.Exit(exitIllegal)
	}
}
