//! The token that calls show.

use tailwater_api::etcdserverpb::AuthenticateRequest;
use tailwater_api::etcdserverpb::auth_client::AuthClient;
use tokio::sync::Mutex;
use tonic::metadata::AsciiMetadataValue;
use tonic::{Request, Status};

use crate::Error;
use crate::config::User;
use crate::connections::Node;

/// What a server without users answers.
const NOT_ENABLED: &str = "etcdserver: authentication is not enabled";

pub(crate) struct Auth {
    user: Option<User>,
    /// Held while one caller logs in, so that the others wait for its token rather than take their own.
    state: Mutex<State>,
}

struct State {
    login: Login,
    /// How many logins there were: names the token that a call was sent with.
    logins: u64,
}

enum Login {
    Wanted,
    /// Without a token: the servers have no users, or no name was given.
    Done(Option<AsciiMetadataValue>),
}

/// Which token a call was sent with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenNumber(u64);

impl Auth {
    pub(crate) fn new(user: Option<User>) -> Self {
        let login = if user.is_some() { Login::Wanted } else { Login::Done(None) };
        Self { user, state: Mutex::new(State { login, logins: 0 }) }
    }

    pub(crate) fn has_user(&self) -> bool {
        self.user.is_some()
    }

    /// Puts the token into a request, after logging in at `node` if there is none.
    pub(crate) async fn sign<Q>(&self, node: &Node, request: &mut Request<Q>) -> Result<TokenNumber, Error> {
        let mut state = self.state.lock().await;
        if let (Login::Wanted, Some(user)) = (&state.login, &self.user) {
            state.login = Login::Done(log_in(node, user).await?);
            state.logins += 1;
        }
        if let Login::Done(Some(token)) = &state.login {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(TokenNumber(state.logins))
    }

    /// Forgets the token that a call was sent with, where it failed for that; not a newer one that others have.
    pub(crate) async fn judge(&self, used: TokenNumber, failure: Option<&Error>) {
        if self.has_user() && failure.is_some_and(Error::is_stale_token) {
            let mut state = self.state.lock().await;
            if state.logins == used.0 {
                state.login = Login::Wanted;
            }
        }
    }
}

async fn log_in(node: &Node, user: &User) -> Result<Option<AsciiMetadataValue>, Error> {
    let request = AuthenticateRequest { name: user.name.clone(), password: user.password.clone() };
    match AuthClient::new(node.channel.clone()).authenticate(request).await {
        Ok(answer) => {
            let token = answer.into_inner().token.parse();
            token.map(Some).map_err(|_| Error::call(&node.url, Status::internal("the token can't stand in a header")))
        }
        Err(status) if status.message() == NOT_ENABLED => Ok(None),
        Err(status) => Err(Error::call(&node.url, status)),
    }
}
