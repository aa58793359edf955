//! Who IGA is to Google, as far as a credentials file tells: its kind and its names, never its secrets
//! ("Application Default Credentials", "Workload CredentialKind Federation").

use serde_json::Value;
use std::fmt;

/// The kinds of credentials file that [`crate::google::client`] can build a credential from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialKind {
    ServiceAccount {
        email: String,
    },
    AuthorizedUser,
    Impersonated {
        email: String,
    },
    /// An identity of another cloud, in whose name Google gives out tokens.
    Federated {
        source: Source,
        /// `projects/NUMBER/locations/global/workloadIdentityPools/POOL`
        pool: String,
        /// The service account that it acts as, if it does.
        email: Option<String>,
    },
}

/// Where a federated identity proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// With variables of the environment, else with EC2's metadata server.
    Aws {
        /// Asks EC2's metadata server in any case (`--enable-imdsv2`).
        only_on_ec2: bool,
    },
    Azure,
    /// Another address, by its host.
    Url(String),
    File(String),
    Executable,
}

/// The steps of a federated identity on its way to an access token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FederationStep {
    /// It proves itself, with what its own cloud gives it.
    SubjectToken,
    /// Google's pool lets it in.
    TokenExchange,
    /// It acts as a service account.
    Impersonation,
}

impl FederationStep {
    /// The step that failed, by the names that Google's library has for them.
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

    /// What the file says of itself; none where it is of no known type.
    pub fn from_file(json: &Value) -> Option<CredentialKind> {
        let text = |name: &str| json[name].as_str().unwrap_or_default();
        let acts_as = || email_in(text("service_account_impersonation_url"));
        match json["type"].as_str()? {
            "authorized_user" => Some(CredentialKind::AuthorizedUser),
            "service_account" => {
                Some(CredentialKind::ServiceAccount { email: text("client_email").to_owned() })
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

    /// What to change when no token comes of it; `cause` is what Google's library says.
    pub fn advice(&self, cause: &str) -> String {
        let somewhere_else = "elsewhere GOOGLE_APPLICATION_CREDENTIALS must name a file made for that platform, and \
                              on Google Cloud none";
        match self {
            CredentialKind::ServiceAccount { .. } => "Download a new key.".to_owned(),
            CredentialKind::AuthorizedUser => {
                "Sign in anew: gcloud auth application-default login.".to_owned()
            }
            CredentialKind::Impersonated { email } => {
                format!("Whoever signed in needs roles/iam.serviceAccountTokenCreator on {email}.")
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
                    "The file is made for AWS, and this is no AWS identity. On AWS set AWS_ACCESS_KEY_ID, \
                 AWS_SECRET_ACCESS_KEY and AWS_REGION; {somewhere_else}."
                )
            }
            CredentialKind::Federated { source: Source::Azure, .. } => {
                format!(
                    "The file is made for Azure, whose metadata server is not here; {somewhere_else}."
                )
            }
            CredentialKind::Federated { source: Source::Url(host), .. } => {
                format!("The file asks {host} for a token of its own cloud; {somewhere_else}.")
            }
            CredentialKind::Federated { source: Source::File(path), .. } => format!(
                "The file wants a token of its own cloud in {path}. Where that is made, have it written there; \
                 {somewhere_else}."
            ),
            CredentialKind::Federated { source: Source::Executable, .. } => format!(
                "The file has a program make the token of its own cloud, which needs \
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
            (None, Some(url), _) => Source::Url(url.split('/').nth(2).unwrap_or(url).to_owned()),
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

/// `…/serviceAccounts/EMAIL:generateAccessToken`
fn email_in(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("/serviceAccounts/")?;
    Some(rest.split(':').next().unwrap_or(rest).to_owned())
}

/// `//iam.googleapis.com/POOL/providers/PROVIDER`
fn pool_in(audience: &str) -> String {
    let path = audience.trim_start_matches("//iam.googleapis.com/");
    path.split("/providers/").next().unwrap_or(path).to_owned()
}

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

    #[test]
    fn every_type_is_told_with_its_names_and_without_its_secrets() {
        for kind in CredentialKind::TYPES {
            let file = json!({"type": kind, "client_email": "a@b", "private_key": "SECRET", "refresh_token": "SECRET",
                "service_account_impersonation_url": "https://x/v1/projects/-/serviceAccounts/c@d:generateAccessToken"});
            let identity = CredentialKind::from_file(&file).unwrap();
            assert!(!format!("{identity} {identity:?} {}", identity.advice("")).contains("SECRET"));
        }
        assert_eq!(CredentialKind::from_file(&json!({"type": "weird"})), None);
    }

    #[test]
    fn a_federated_identity_is_told_by_its_cloud() {
        let azure = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=x";
        for (source, told) in [
            (json!({"environment_id": "aws1", "url": "http://169.254.169.254/latest"}), "AWS"),
            (json!({"url": azure, "headers": {"Metadata": "True"}}), "Azure"),
            (json!({"url": "https://tokens.example.com/x"}), "tokens.example.com"),
            (json!({"file": "/var/run/token"}), "the token in /var/run/token"),
            (json!({"executable": {"command": "x"}}), "a program's token"),
        ] {
            let identity = federated(source);
            let account = "acting as service account a@b.iam.gserviceaccount.com";
            assert_eq!(identity.to_string(), format!("federated from {told}, {account}"));
            assert!(identity.advice("").contains("GOOGLE_APPLICATION_CREDENTIALS"));
            assert!(
                identity.advice("failed to exchange token").contains("workloadIdentityPools/p ")
            );
            assert!(
                identity
                    .advice("failed to fetch token")
                    .contains("roles/iam.workloadIdentityUser on a@b")
            );
        }
    }
}
