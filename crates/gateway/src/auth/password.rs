//! Passwords: hashed and compared beside the threads that serve, a bounded number at a time.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::sync::Semaphore;

use crate::status::{Code, Fault};

/// bcrypt reads no more; etcd refuses a longer one.
const PASSWORD_BYTES_MAX: usize = 72;

/// Hashes and compares. Each takes a tenth of a second of CPU, and anybody can ask for it: more than a few at a
/// time would slow down everything else.
#[derive(Clone)]
pub(crate) struct Passwords {
    cost: u32,
    permits: Arc<Semaphore>,
}

impl Passwords {
    /// With this work factor; `at_once` of them run at a time, the others wait.
    pub(crate) fn new(cost: u32, at_once: usize) -> Self {
        Self { cost, permits: Arc::new(Semaphore::new(at_once)) }
    }

    /// A hash as it travels in requests.
    ///
    /// # Errors
    /// The password is too long.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Fault> {
        if password.len() > PASSWORD_BYTES_MAX {
            let text = format!("bcrypt: password length exceeds {PASSWORD_BYTES_MAX} bytes");
            return Err(Fault::Other(Code::Unknown, text));
        }
        let cost = self.cost;
        let hashed = self.run(move || bcrypt::hash_with_result(password, cost)).await?;
        match hashed {
            // The version that Go's bcrypt writes; what is hashed is the same.
            Ok(parts) => Ok(BASE64.encode(parts.format_for_version(bcrypt::Version::TwoA))),
            Err(error) => Err(Fault::Other(Code::Unknown, error.to_string())),
        }
    }

    /// Whether this is the password. A hash that can't be read fits none.
    pub(crate) async fn fits(&self, password: String, hash: Vec<u8>) -> Result<bool, Fault> {
        let Ok(hash) = String::from_utf8(hash) else { return Ok(false) };
        self.run(move || bcrypt::verify(password, &hash).unwrap_or(false)).await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
        // Never closed.
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| Fault::Stopped)?;
        let work = move || {
            // Held until the work is done, also when nobody waits for it any more.
            let _permit = permit;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| Fault::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hashes_are_those_of_etcd() {
        let passwords = Passwords::new(4, 1);
        let hash = BASE64.decode(passwords.hash("secret".into()).await.expect("hashed")).expect("base64");
        assert!(hash.starts_with(b"$2a$04$"), "{}", hash.escape_ascii());
        assert_eq!(passwords.fits("secret".into(), hash.clone()).await, Ok(true));
        assert_eq!(passwords.fits("Secret".into(), hash).await, Ok(false));
        assert_eq!(passwords.fits(String::new(), Vec::new()).await, Ok(false));
        // Written by etcd 3.6.
        let etcds = b"$2a$04$i3.3gDpyMQyK7PNqAEc5veHaEh1Ll5G9wOnqUCS5rCUg9gKd6cZ4u".to_vec();
        assert_eq!(passwords.fits("other".into(), etcds).await, Ok(false));
        let longest = "x".repeat(72);
        assert!(passwords.hash(longest.clone()).await.is_ok());
        let text = "bcrypt: password length exceeds 72 bytes";
        assert_eq!(passwords.hash(longest + "x").await, Err(Fault::Other(Code::Unknown, text.into())));
    }
}
