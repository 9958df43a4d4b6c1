//! What happened, as a number to compare and, when asked for, as lines to read.

/// Where the lines of a readable trace go.
pub type Sink = Box<dyn FnMut(&str)>;

/// Gathers what happens in a world.
pub(crate) struct Trace {
    hash: u64,
    steps: u64,
    sink: Option<Sink>,
}

impl Trace {
    pub(crate) fn new(sink: Option<Sink>) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, steps: 0, sink }
    }

    /// One step of the world. `numbers` must follow from the seed alone: two runs are compared by them.
    pub(crate) fn step(&mut self, now: u64, what: &str, numbers: &[u64]) {
        self.steps += 1;
        self.bytes(what.as_bytes());
        self.number(now);
        numbers.iter().for_each(|number| self.number(*number));
        if let Some(sink) = &mut self.sink {
            sink(&format!("{:>10}.{:03} {what} {numbers:?}", now / 1000, now % 1000));
        }
    }

    /// A line for readers only.
    pub(crate) fn say(&mut self, now: u64, line: impl FnOnce() -> String) {
        if let Some(sink) = &mut self.sink {
            sink(&format!("{:>10}.{:03} {}", now / 1000, now % 1000, line()));
        }
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    fn number(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut number = [0; 8];
            number[..chunk.len()].copy_from_slice(chunk);
            self.number(u64::from_le_bytes(number) ^ chunk.len() as u64);
        }
    }
}
