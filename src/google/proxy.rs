//! Which requests go through a proxy of the environment, and which never do.

use crate::config::Credentials;
use crate::google::plain_url;
use serde_json::Value;

/// Checks a value of a proxy variable, such as `HTTPS_PROXY`, as the HTTP client reads it.
///
/// # Errors
/// What is wrong with it. The value is not repeated, because it may hold a password.
pub fn check(text: &str) -> Result<(), String> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let scheme = with_scheme.split("://").next().unwrap_or_default().to_ascii_lowercase();
    let problem = match scheme.as_str() {
        "http" if with_scheme.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some()) => {
            return Ok(());
        }
        "http" => "cannot be parsed as a URL",
        "https" => "names an https:// proxy, which IGA does not support",
        _ if scheme.starts_with("socks") => "names a SOCKS proxy, which IGA does not support",
        _ => "names a proxy of an unknown kind",
    };
    Err(format!("{problem}; set it to an http:// proxy such as http://proxy.example.com:3128"))
}

/// Adds the sources of tokens to `NO_PROXY`, because Google's credentials library builds HTTP clients of its
/// own, which read the environment.
///
/// # Safety
/// No other thread may run: this writes the environment.
pub unsafe fn exempt_token_sources(sources: &Credentials) {
    let set = ["NO_PROXY", "no_proxy"].iter().find_map(|name| std::env::var(name).ok());
    let entries = set.into_iter().chain(TOKEN_SOURCES.iter().map(|entry| (*entry).to_owned()));
    let entries: Vec<_> = entries.chain(hosts(sources)).collect();
    // SAFETY: the caller promises that no other thread runs.
    unsafe { std::env::set_var("NO_PROXY", entries.join(",")) };
}

/// The hosts that the settings and the credentials file name as sources of tokens over plain http.
fn hosts(sources: &Credentials) -> Vec<String> {
    let metadata = sources.metadata_host.iter().map(|host| format!("http://{host}"));
    let file = sources.file.as_deref().or(sources.gcloud_file.as_deref());
    let json: Option<Value> =
        file.and_then(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok());
    let source = json.as_ref().map_or(&Value::Null, |json| &json["credential_source"]);
    let urls = ["url", "region_url", "imdsv2_session_token_url"]
        .iter()
        .filter_map(|name| source[name].as_str().map(str::to_owned));
    metadata
        .chain(urls)
        .filter_map(|url| plain_url(&url))
        .filter(|url| url.scheme() == "http")
        .filter_map(|url| Some(url.host_str()?.trim_matches(['[', ']']).to_owned()))
        .collect()
}

/// This machine, link-local addresses, and the metadata servers of Google, AWS and Azure.
const TOKEN_SOURCES: &[&str] = &[
    "localhost",
    "127.0.0.0/8",
    "::1",
    "169.254.0.0/16",
    "fe80::/10",
    "metadata.google.internal",
    "fd20:ce::254",
    "fd00:ec2::254",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_proxies_are_taken_and_others_are_refused_without_their_value() {
        for good in ["http://proxy:3128", "proxy:3128", "HTTP://u:p@10.0.0.1:1/", "http://[::1]:1"]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, words) in [
            ("https://u:SECRET@proxy", "https:// proxy"),
            ("socks5h://u:SECRET@proxy", "SOCKS"),
            ("SOCKS4://SECRET", "SOCKS"),
            ("http://u:SECRET@[bad", "cannot be parsed"),
            ("http://SECRET with blanks", "cannot be parsed"),
            ("ftp://SECRET", "unknown kind"),
        ] {
            let problem = check(bad).unwrap_err();
            assert!(problem.contains(words) && !problem.contains("SECRET"), "{problem}");
        }
    }

    #[test]
    fn the_hosts_of_token_sources_are_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = r#"{"credential_source": {"url": "http://10.1.2.3:80/token", "region_url": "https://a.example.com",
            "imdsv2_session_token_url": "http://[fd00:ec2::254]/latest/api/token"}}"#;
        std::fs::write(file.path(), text).unwrap();
        let sources = Credentials {
            file: Some(file.path().to_owned()),
            metadata_host: Some("metadata:8080".to_owned()),
            ..Credentials::default()
        };
        assert_eq!(hosts(&sources), ["metadata", "10.1.2.3", "fd00:ec2::254"]);
    }
}
