//! Credentials files: which kind they are, whether they can work, and their names, but never their secrets
//! ("Application Default Credentials", "Workload Identity Federation").

use crate::google::plain_url;
use ring::rsa::KeyPair;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use std::fmt;

/// A file that Google's credentials library can build a credential from.
pub struct CredentialFile {
    pub kind: CredentialKind,
    pub json: Value,
}

impl CredentialFile {
    /// # Errors
    /// What is wrong and how to fix it, as the end of a sentence about the file. It repeats nothing of
    /// the file.
    pub fn parse(text: &[u8]) -> Result<CredentialFile, String> {
        let json: Value =
            serde_json::from_slice(text).map_err(|_| format!("is not JSON; {DOWNLOAD_AGAIN}"))?;
        check(&json)?;
        match CredentialKind::from_file(&json) {
            Some(kind) => Ok(CredentialFile { kind, json }),
            None => Err(unknown_type()),
        }
    }
}

/// Finds the problems at which Google's library would fail, because the library's errors repeat parts
/// of the file.
fn check(json: &Value) -> Result<(), String> {
    let required: &[&str] = match json["type"].as_str() {
        None => return Err("has no type, so it is not a Google credentials file".to_owned()),
        Some("service_account") => &["client_email", "private_key_id", "private_key", "project_id"],
        Some("authorized_user") => &["client_id", "client_secret", "refresh_token"],
        Some("impersonated_service_account") => {
            &["service_account_impersonation_url", "source_credentials"]
        }
        Some("external_account") => {
            &["audience", "subject_token_type", "token_url", "credential_source"]
        }
        Some("external_account_authorized_user") => return Err(WORKFORCE_SIGN_IN.to_owned()),
        Some(_) => return Err(unknown_type()),
    };
    if let Some(field) = required.iter().find(|field| json[**field].is_null()) {
        return Err(format!("lacks {field}; {DOWNLOAD_AGAIN}"));
    }
    let fits = |field: &str| match field {
        "source_credentials" | "credential_source" => json[field].is_object(),
        _ => json[field].is_string(),
    };
    if let Some(field) = required.iter().find(|field| !fits(field)) {
        return Err(format!("has a {field} of the wrong type; {DOWNLOAD_AGAIN}"));
    }
    if json["universe_domain"].as_str().is_some_and(|domain| domain != UNIVERSE) {
        return Err(format!(
            "belongs to another universe_domain than {UNIVERSE}, the only one that IGA calls"
        ));
    }
    if let Some(pem) = json["private_key"].as_str() {
        check_private_key(pem)?;
    }
    match &json["source_credentials"] {
        Value::Null => Ok(()),
        source if source["type"] == "impersonated_service_account" => {
            Err("impersonates an account through another impersonation; list that account under delegates".to_owned())
        }
        source => check(source).map_err(|problem| format!("has source_credentials that cannot be used: it {problem}")),
    }
}

/// Parses the key as Google's library does.
fn check_private_key(pem: &str) -> Result<(), String> {
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes());
    if let Ok(PrivateKeyDer::Pkcs8(der)) = &key
        && KeyPair::from_pkcs8(der.secret_pkcs8_der()).is_ok()
    {
        return Ok(());
    }
    let problem = if pem.contains("\\n") {
        "with the two characters \\n where its line breaks should be: write \\n, not \\\\n, in the JSON"
    } else if pem.contains("ENCRYPTED") {
        "that is encrypted, for which IGA has no passphrase"
    } else if !pem.contains("-----BEGIN ") {
        "that does not begin with -----BEGIN PRIVATE KEY-----"
    } else if !pem.contains("-----BEGIN PRIVATE KEY-----") {
        "of another kind than PKCS #8 (-----BEGIN PRIVATE KEY-----)"
    } else if !pem.contains("-----END PRIVATE KEY-----") {
        "that is cut off: it has no line -----END PRIVATE KEY-----"
    } else if pem.trim().lines().count() < 3 {
        "without line breaks after its first and before its last line"
    } else if key.is_ok() {
        "that is damaged, or not an RSA key of at least 2048 bits"
    } else {
        "that is damaged: its base64 cannot be decoded"
    };
    Err(format!("has a private_key {problem}; {DOWNLOAD_AGAIN}"))
}

fn unknown_type() -> String {
    format!("is of an unknown type; IGA knows {}", CredentialKind::TYPES.join(", "))
}

const UNIVERSE: &str = "googleapis.com";
pub const DOWNLOAD_AGAIN: &str = "download or generate it again";
const WORKFORCE_SIGN_IN: &str = "is of type external_account_authorized_user, the sign-in of a workforce pool, which \
    IGA cannot use; make one with gcloud iam workforce-pools create-cred-config, or sign in with a Google account";

/// The kinds of credentials file, with the names in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialKind {
    ServiceAccount {
        email: String,
    },
    AuthorizedUser,
    Impersonated {
        email: String,
    },
    /// An identity of another cloud, for which Google issues tokens.
    Federated {
        source: Source,
        /// `projects/NUMBER/locations/global/workloadIdentityPools/POOL`
        pool: String,
        /// The service account that it impersonates, if any.
        email: Option<String>,
    },
}

/// Where a federated identity gets the token that proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Variables of the environment, otherwise EC2's metadata server.
    Aws {
        /// Always needs EC2's metadata server (`--enable-imdsv2`).
        only_on_ec2: bool,
    },
    Azure,
    /// The host of another URL.
    Url(String),
    /// A path.
    File(String),
    Executable,
}

/// The steps from a federated identity to an access token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FederationStep {
    /// Gets a token of its own cloud.
    SubjectToken,
    /// Exchanges it for a token of Google's pool.
    TokenExchange,
    /// Impersonates a service account with that.
    Impersonation,
}

impl FederationStep {
    /// The step that failed, by its name in Google's library.
    pub fn of(cause: &str) -> FederationStep {
        match cause {
            _ if cause.contains("failed to exchange token") => FederationStep::TokenExchange,
            _ if cause.contains("failed to fetch token") => FederationStep::Impersonation,
            _ => FederationStep::SubjectToken,
        }
    }
}

impl CredentialKind {
    /// The value of `type` in each kind of file.
    pub const TYPES: [&str; 4] =
        ["authorized_user", "service_account", "impersonated_service_account", "external_account"];

    /// What the file says of itself; `None` for an unknown type.
    pub fn from_file(json: &Value) -> Option<CredentialKind> {
        let text = |name: &str| json[name].as_str().unwrap_or_default();
        let acts_as = || email_in(text("service_account_impersonation_url"));
        match json["type"].as_str()? {
            "authorized_user" => Some(CredentialKind::AuthorizedUser),
            "service_account" => {
                Some(CredentialKind::ServiceAccount { email: name_in(text("client_email")) })
            }
            "impersonated_service_account" => {
                Some(CredentialKind::Impersonated { email: acts_as().unwrap_or_default() })
            }
            "external_account" => Some(CredentialKind::Federated {
                source: Source::from_file(&json["credential_source"]),
                pool: pool_in(text("audience")),
                email: acts_as(),
            }),
            _ => None,
        }
    }

    /// The service account that requests are made as, if it is one.
    pub fn email(&self) -> Option<&str> {
        let email = match self {
            CredentialKind::ServiceAccount { email } | CredentialKind::Impersonated { email } => {
                Some(email)
            }
            CredentialKind::Federated { email, .. } => email.as_ref(),
            CredentialKind::AuthorizedUser => None,
        };
        email.map(String::as_str).filter(|email| !email.is_empty())
    }

    /// What to change if it yields no token; `cause` is the failure's text in the log.
    pub fn advice(&self, cause: &str) -> String {
        let somewhere_else = "elsewhere GOOGLE_APPLICATION_CREDENTIALS must name a file made for that platform, and \
                              on Google Cloud it must be unset";
        match self {
            CredentialKind::ServiceAccount { .. } => "Download a new key.".to_owned(),
            CredentialKind::AuthorizedUser => {
                "Sign in again: gcloud auth application-default login.".to_owned()
            }
            CredentialKind::Impersonated { email } => {
                format!(
                    "The person who signed in needs roles/iam.serviceAccountTokenCreator on {email}."
                )
            }
            CredentialKind::Federated { pool, .. }
                if FederationStep::of(cause) == FederationStep::TokenExchange =>
            {
                format!(
                    "The pool {pool} does not let this identity in; see its provider's attribute condition."
                )
            }
            CredentialKind::Federated { email: Some(email), .. }
                if FederationStep::of(cause) == FederationStep::Impersonation =>
            {
                format!("The federated identity needs roles/iam.workloadIdentityUser on {email}.")
            }
            CredentialKind::Federated { source: Source::Aws { only_on_ec2: true }, .. } => format!(
                "The file is made for EC2 (--enable-imdsv2), whose metadata server is not here. On AWS Lambda make it \
                 without that option; {somewhere_else}."
            ),
            CredentialKind::Federated { source: Source::Aws { only_on_ec2: false }, .. } => {
                format!(
                    "The file is made for AWS, and this process has no AWS identity. On AWS set AWS_ACCESS_KEY_ID, \
                 AWS_SECRET_ACCESS_KEY and AWS_REGION; {somewhere_else}."
                )
            }
            CredentialKind::Federated { source: Source::Azure, .. } => {
                format!(
                    "The file is made for Azure, whose metadata server is not here; {somewhere_else}."
                )
            }
            CredentialKind::Federated { source: Source::Url(host), .. } => {
                format!("The file gets a token of its own cloud from {host}; {somewhere_else}.")
            }
            CredentialKind::Federated { source: Source::File(path), .. } => format!(
                "The file needs a token of its own cloud in {path}, which another program must write; \
                 {somewhere_else}."
            ),
            CredentialKind::Federated { source: Source::Executable, .. } => format!(
                "The file gets a token of its own cloud from a program, which needs \
                 GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES=1 and the program; {somewhere_else}."
            ),
        }
    }
}

impl fmt::Display for CredentialKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CredentialKind::ServiceAccount { email } => write!(f, "service account {email}"),
            CredentialKind::AuthorizedUser => f.write_str("a person's sign-in with gcloud"),
            CredentialKind::Impersonated { email } => {
                write!(f, "a person's sign-in, acting as service account {email}")
            }
            CredentialKind::Federated { source, email: Some(email), .. } => {
                write!(f, "federated from {source}, acting as service account {email}")
            }
            CredentialKind::Federated { source, pool, email: None } => {
                write!(f, "federated from {source} in {pool}")
            }
        }
    }
}

impl Source {
    fn from_file(json: &Value) -> Source {
        let text = |name: &str| json[name].as_str();
        match (text("environment_id"), text("url"), text("file")) {
            (Some(_), _, _) => {
                Source::Aws { only_on_ec2: text("imdsv2_session_token_url").is_some() }
            }
            (None, Some(url), _) if url.contains("/metadata/identity/") => Source::Azure,
            (None, Some(url), _) => Source::Url(host_in(url)),
            (None, None, Some(path)) => Source::File(path.to_owned()),
            (None, None, None) => Source::Executable,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Aws { .. } => f.write_str("AWS"),
            Source::Azure => f.write_str("Azure"),
            Source::Url(host) => f.write_str(host),
            Source::File(path) => write!(f, "the token in {path}"),
            Source::Executable => f.write_str("a program's token"),
        }
    }
}

/// The email of `…/serviceAccounts/EMAIL:generateAccessToken`.
fn email_in(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("/serviceAccounts/")?;
    Some(name_in(rest.split(':').next().unwrap_or(rest)))
}

/// The pool of `//iam.googleapis.com/POOL/providers/PROVIDER`.
fn pool_in(audience: &str) -> String {
    let path = audience.trim_start_matches("//iam.googleapis.com/");
    name_in(path.split("/providers/").next().unwrap_or(path))
}

/// Host and port, without user and password.
fn host_in(url: &str) -> String {
    let url = plain_url(url);
    let host = url.as_ref().and_then(|url| url.host_str().map(|host| (host, url.port())));
    match host {
        Some((host, Some(port))) => format!("{host}:{port}"),
        Some((host, None)) => host.to_owned(),
        None => "an invalid URL".to_owned(),
    }
}

/// A name that may be printed; a placeholder for anything that does not look like an email or a resource name.
fn name_in(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || "@.-_/:".contains(c);
    match text.len() <= MAX_NAME_BYTES && text.chars().all(fits) {
        true => text.to_owned(),
        false => "UNREADABLE".to_owned(),
    }
}

const MAX_NAME_BYTES: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn federated(source: Value) -> CredentialKind {
        CredentialKind::from_file(&json!({
            "type": "external_account",
            "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/x",
            "credential_source": source,
            "service_account_impersonation_url":
                "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/a@b.iam.gserviceaccount.com:generateAccessToken",
        }))
        .unwrap()
    }

    fn problem(json: Value) -> String {
        CredentialFile::parse(json.to_string().as_bytes()).err().expect("a problem")
    }

    fn account(key: &str) -> Value {
        json!({"type": "service_account", "client_email": "a@b", "private_key_id": "SECRET", "project_id": "p",
            "private_key": key})
    }

    #[test]
    fn every_type_is_named_without_its_secrets() {
        for kind in CredentialKind::TYPES {
            let file = json!({"type": kind, "client_email": "a@b", "private_key": "SECRET", "refresh_token": "SECRET",
                "service_account_impersonation_url": "https://x/v1/projects/-/serviceAccounts/c@d:generateAccessToken"});
            let kind = CredentialKind::from_file(&file).unwrap();
            assert!(!format!("{kind} {kind:?} {}", kind.advice("")).contains("SECRET"));
        }
        assert_eq!(CredentialKind::from_file(&json!({"type": "weird"})), None);
        let pasted =
            json!({"type": "service_account", "client_email": "{\"private_key\": \"SECRET\"}"});
        assert!(!CredentialKind::from_file(&pasted).unwrap().to_string().contains("SECRET"));
    }

    #[test]
    fn an_unusable_private_key_is_explained_without_its_text() {
        let good = include_str!("../../tests/it/test_key.pem");
        for key in [good.to_owned(), good.replace('\n', "\r\n"), format!("\n{good}\n")] {
            assert!(CredentialFile::parse(account(&key).to_string().as_bytes()).is_ok());
        }
        let middle = good.lines().nth(10).unwrap();
        for (key, words) in [
            (good.replace('\n', "\\n"), "two characters \\n"),
            (good.replace('\n', " "), "without line breaks"),
            (good.replace('\n', ""), "without line breaks"),
            (good.lines().take(9).collect::<Vec<_>>().join("\n"), "cut off"),
            (good.replace(middle, ""), "damaged, or not an RSA key"),
            (good.replace(middle, &middle.replace(&middle[..8], "!!!!!!!!")), "cannot be decoded"),
            (good.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), "encrypted"),
            (good.replace("PRIVATE KEY", "RSA PRIVATE KEY"), "another kind than PKCS #8"),
            (good.replace("PRIVATE KEY", "PUBLIC KEY"), "another kind than PKCS #8"),
            (middle.to_owned(), "does not begin with"),
            (String::new(), "does not begin with"),
        ] {
            let problem = problem(account(&key));
            assert!(problem.contains(words) && problem.contains("again"), "{words}: {problem}");
            assert!(
                !good.lines().any(|line| !line.starts_with('-') && problem.contains(line)),
                "{problem}"
            );
        }
    }

    #[test]
    fn an_unusable_file_is_explained_without_its_text() {
        let user = json!({"type": "authorized_user", "client_id": "SECRET", "client_secret": "SECRET",
            "refresh_token": "SECRET"});
        let with = |name: &str, value: Value| {
            let mut file = user.clone();
            file[name] = value;
            file
        };
        let impersonated = |source: Value| {
            json!({"type": "impersonated_service_account", "source_credentials": source,
                "service_account_impersonation_url": "https://x/serviceAccounts/c@d:generateAccessToken"})
        };
        assert!(CredentialFile::parse(user.to_string().as_bytes()).is_ok());
        assert!(CredentialFile::parse(impersonated(user.clone()).to_string().as_bytes()).is_ok());
        for (file, words) in [
            (json!("SECRET"), "has no type"),
            (json!({"type": {"SECRET": 1}}), "has no type"),
            (with("type", json!("SECRET")), "of an unknown type; IGA knows authorized_user"),
            (with("type", json!("external_account_authorized_user")), "workforce"),
            (with("refresh_token", Value::Null), "lacks refresh_token"),
            (with("client_id", json!(["SECRET"])), "client_id of the wrong type"),
            (with("universe_domain", json!("SECRET.example")), "another universe_domain"),
            (impersonated(json!("SECRET")), "source_credentials of the wrong type"),
            (impersonated(with("client_secret", Value::Null)), "it lacks client_secret"),
            (impersonated(impersonated(user.clone())), "delegates"),
            (json!({"type": "external_account"}), "lacks audience"),
        ] {
            let problem = problem(file);
            assert!(problem.contains(words) && !problem.contains("SECRET"), "{words}: {problem}");
        }
        assert!(CredentialFile::parse(b"SECRET").err().unwrap().starts_with("is not JSON"));
        assert!(
            CredentialFile::parse(
                with("universe_domain", json!("googleapis.com")).to_string().as_bytes()
            )
            .is_ok()
        );
    }

    #[test]
    fn a_federated_identity_is_named_by_its_cloud() {
        let azure = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=x";
        for (source, told) in [
            (json!({"environment_id": "aws1", "url": "http://169.254.169.254/latest"}), "AWS"),
            (json!({"url": azure, "headers": {"Metadata": "True"}}), "Azure"),
            (json!({"url": "https://u:SECRET@tokens.example.com:1/x"}), "tokens.example.com:1"),
            (json!({"file": "/var/run/token"}), "the token in /var/run/token"),
            (json!({"executable": {"command": "x"}}), "a program's token"),
        ] {
            let kind = federated(source);
            let account = "acting as service account a@b.iam.gserviceaccount.com";
            assert_eq!(kind.to_string(), format!("federated from {told}, {account}"));
            assert!(kind.advice("").contains("GOOGLE_APPLICATION_CREDENTIALS"));
            assert!(kind.advice("failed to exchange token").contains("workloadIdentityPools/p "));
            assert!(
                kind.advice("failed to fetch token")
                    .contains("roles/iam.workloadIdentityUser on a@b")
            );
        }
    }
}
