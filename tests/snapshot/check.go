package main

import (
	"fmt"
	"io"
	"math/rand"
	"os"

	bolt "go.etcd.io/bbolt"
)

// check opens the file as etcd and its tools do, then changes a copy of it as a restored etcd would, so that bbolt's
// own code splits, merges and frees the pages that it finds there.
func check(path string) error {
	for _, freelist := range []bolt.FreelistType{bolt.FreelistMapType, bolt.FreelistArrayType} {
		db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true, FreelistType: freelist, PreLoadFreelist: true})
		if err != nil {
			return err
		}
		err = db.View(sound)
		db.Close()
		if err != nil {
			return fmt.Errorf("freelist %s: %w", freelist, err)
		}
		for _, unsynced := range []bool{false, true} {
			if err := change(path, freelist, unsynced); err != nil {
				return fmt.Errorf("freelist %s, NoFreelistSync %t: %w", freelist, unsynced, err)
			}
		}
	}
	return nil
}

func sound(tx *bolt.Tx) error {
	for err := range tx.Check() {
		return err
	}
	return nil
}

func change(path string, freelist bolt.FreelistType, unsynced bool) error {
	copied, err := copyOf(path)
	if err != nil {
		return err
	}
	defer os.Remove(copied)
	db, err := bolt.Open(copied, 0o600, &bolt.Options{FreelistType: freelist, NoFreelistSync: unsynced, NoSync: true})
	if err != nil {
		return err
	}
	defer db.Close()
	random := rand.New(rand.NewSource(2))
	// First one row in three, then most of what is left, then all: leaves merge, branches fall together.
	for round, keep := range []float64{0.67, 0.1, 0} {
		if err := db.Update(func(tx *bolt.Tx) error { return thin(tx, random, keep) }); err != nil {
			return err
		}
		if err := db.View(sound); err != nil {
			return fmt.Errorf("after round %d of deletes: %w", round, err)
		}
		if err := db.Update(func(tx *bolt.Tx) error { return grow(tx, round) }); err != nil {
			return err
		}
		if err := db.View(sound); err != nil {
			return fmt.Errorf("after round %d of puts: %w", round, err)
		}
	}
	return nil
}

func copyOf(path string) (string, error) {
	from, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer from.Close()
	to, err := os.CreateTemp("", "snapshot-check")
	if err != nil {
		return "", err
	}
	defer to.Close()
	_, err = io.Copy(to, from)
	return to.Name(), err
}

func thin(tx *bolt.Tx, random *rand.Rand, keep float64) error {
	return tx.ForEach(func(_ []byte, bucket *bolt.Bucket) error {
		var gone [][]byte
		if err := bucket.ForEach(func(key, _ []byte) error {
			if random.Float64() >= keep {
				gone = append(gone, append([]byte(nil), key...))
			}
			return nil
		}); err != nil {
			return err
		}
		for _, key := range gone {
			if err := bucket.Delete(key); err != nil {
				return err
			}
		}
		return nil
	})
}

func grow(tx *bolt.Tx, round int) error {
	return tx.ForEach(func(_ []byte, bucket *bolt.Bucket) error {
		for i := range 300 {
			key := fmt.Appendf(nil, "\xff%d-%06d", round, i)
			if err := bucket.Put(key, make([]byte, i*7)); err != nil {
				return err
			}
		}
		return nil
	})
}
