//! A value made of files, made anew when they have changed.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::files::{Stamp, TlsError};

/// Makes the value from the files.
type Load<T> = Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>;

/// The value of the files as they are.
pub(crate) struct Reloading<T> {
    files: Vec<PathBuf>,
    load: Load<T>,
    /// Held while files are read, so that they are read once.
    state: Mutex<State<T>>,
}

struct State<T> {
    /// Of the files when they were last tried.
    stamps: Vec<Option<Stamp>>,
    value: Arc<T>,
}

impl<T> Reloading<T> {
    /// Reads the files.
    ///
    /// # Errors
    /// They can't be used.
    pub(crate) fn new(
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        // Before they are read: a change meanwhile is seen the next time.
        let stamps = stamps(&files);
        let value = Arc::new(load()?);
        Ok(Self { files, load: Box::new(load), state: Mutex::new(State { stamps, value }) })
    }

    /// The value of the files as they are now; of files that can't be used, that of those before.
    ///
    /// Looks at each file, a few microseconds in all, so that no handshake after a change is served by what was before.
    pub(crate) fn current(&self) -> Arc<T> {
        let mut state = self.state.lock();
        let stamps = stamps(&self.files);
        if stamps != state.stamps {
            state.stamps = stamps;
            match (self.load)() {
                Ok(value) => {
                    state.value = Arc::new(value);
                    tracing::info!(files = self.names(), "took over changed TLS files");
                }
                Err(error) => {
                    let reason = error.to_string();
                    tracing::warn!(files = self.names(), reason, "changed TLS files can't be used; those before stay");
                }
            }
        }
        state.value.clone()
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.files.iter().map(|file| file.display().to_string()).collect();
        names.join(",")
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|file| Stamp::of(file)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_changed_file_is_read_again_and_an_unusable_one_is_not_taken_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("value");
        fs::write(&file, "1").expect("written");
        let from = file.clone();
        let reloading = Reloading::new(vec![file.clone()], move || {
            let text = fs::read_to_string(&from).map_err(|_| TlsError::NoRoots)?;
            text.parse::<u32>().map_err(|_| TlsError::KeyMismatch)
        });
        let reloading = reloading.expect("a number");
        let first = reloading.current();
        assert_eq!((*first, Arc::as_ptr(&first)), (1, Arc::as_ptr(&reloading.current())));
        fs::write(&file, "22").expect("written");
        assert_eq!(*reloading.current(), 22);
        fs::write(&file, "not a number").expect("written");
        assert_eq!(*reloading.current(), 22);
        fs::remove_file(&file).expect("removed");
        assert_eq!(*reloading.current(), 22);
        fs::write(&file, "3").expect("written");
        assert_eq!(*reloading.current(), 3);
    }
}
