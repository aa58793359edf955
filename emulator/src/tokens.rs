//! Access tokens: which are known, and whether a request has a valid one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::Instant;

/// The issued tokens, each with the end of its life.
pub(crate) struct Tokens {
    pub life: Duration,
    known: Mutex<HashMap<String, Instant>>,
}

/// Why a request's credentials are not accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Denied {
    Missing,
    Expired,
    Unknown,
}

impl Tokens {
    pub fn new(life: Duration) -> Self {
        Self { life, known: Mutex::default() }
    }

    pub fn issue(&self) -> String {
        let mut known = self.lock();
        let token = format!("ya29.emulated-{}", known.len() + 1);
        known.insert(token.clone(), Instant::now() + self.life);
        token
    }

    pub fn expire(&self) {
        self.lock().values_mut().for_each(|end| *end = Instant::now());
    }

    /// Accepts a token that was issued here, and a JWT of a service account (its signature
    /// unverified).
    pub fn admit(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let header = headers.get(header::AUTHORIZATION).ok_or(Denied::Missing)?;
        let token = header.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
        let token = token.ok_or(Denied::Unknown)?;
        let mut known = self.lock();
        let end = match known.get(token) {
            Some(end) => *end,
            None => {
                let end = Instant::now() + remaining_jwt_life(token).ok_or(Denied::Unknown)?;
                known.insert(token.to_owned(), end);
                end
            }
        };
        if Instant::now() < end { Ok(()) } else { Err(Denied::Expired) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The remaining life of a service account's JWT; its signature is not verified.
pub(crate) fn remaining_jwt_life(token: &str) -> Option<Duration> {
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = parts[..] else {
        return None;
    };
    let decode = |part: &str| -> Option<Value> {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
    };
    let (header, claims) = (decode(header)?, decode(claims)?);
    let (issued, expiry) = (claims["iat"].as_i64()?, claims["exp"].as_i64()?);
    let addressed = claims["scope"].is_string() || claims["aud"].is_string();
    let well_formed =
        header["alg"] == "RS256" && !signature.is_empty() && claims["iss"].is_string();
    if !addressed || !well_formed || expiry - issued > MAX_JWT_SECONDS {
        return None;
    }
    u64::try_from(expiry - OffsetDateTime::now_utc().unix_timestamp()).ok().map(Duration::from_secs)
}

/// One hour, and the ten seconds that Google's own library adds before and after it.
const MAX_JWT_SECONDS: i64 = 3620;
