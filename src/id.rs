//! Random identifiers of requests and objects, and digests of their content.

use ring::digest::{Context, SHA256};
use ring::rand::{SecureRandom, SystemRandom};

/// A new request id: `iga_req_` and eight hex digits.
pub fn request_id() -> String {
    format!("iga_req_{}", random_hex::<4>())
}

/// `N` random bytes as hex.
pub fn random_hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("an operating system without random bytes serves no TLS either");
    to_hex(&bytes)
}

/// SHA-256 of the parts, one after the other, as hex.
pub fn sha256_hex(parts: &[&[u8]]) -> String {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    to_hex(context.finish().as_ref())
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_has_the_contracts_form_and_is_new_each_time() {
        let id = request_id();
        let digits = id.strip_prefix("iga_req_").unwrap();
        assert!(digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        assert_ne!(id, request_id());
    }

    #[test]
    fn a_digest_is_sha_256() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(
            (sha256_hex(&[b"a", b"bc"]).as_str(), sha256_hex(&[b"abc"]).as_str()),
            (abc, abc)
        );
    }
}
