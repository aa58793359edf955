//! The commands that fix what the doctor finds: one line each, ready for a shell.

use crate::config::{Config, Platform, Target};
use crate::google::credential_file::{CredentialKind, FederationStep, Source};

/// Where the settings of the process are kept.
pub struct Deployment {
    pub platform: Platform,
    /// The platform's name of the service or function.
    pub service: Option<String>,
}

impl Deployment {
    pub fn set(&self, settings: &[(&str, &str)]) -> String {
        let joined = |separator: &str, equals: &str| {
            let pairs: Vec<_> =
                settings.iter().map(|(name, value)| format!("{name}{equals}{value}")).collect();
            pairs.join(separator)
        };
        match self.platform {
            Platform::Plain => format!("export {}", joined(" ", "=")),
            // `^;^` makes gcloud separate the pairs by semicolons, because values may hold commas.
            Platform::CloudRun => {
                format!(
                    "gcloud run services update {} --update-env-vars \"^;^{}\"",
                    self.service(),
                    joined(";", "=")
                )
            }
            Platform::Lambda => {
                format!("sam deploy   # with {} under Environment: Variables:", joined(", ", ": "))
            }
        }
    }

    pub fn unset(&self, name: &str) -> String {
        match self.platform {
            Platform::Plain => format!("unset {name}"),
            Platform::CloudRun => {
                format!("gcloud run services update {} --remove-env-vars {name}", self.service())
            }
            Platform::Lambda => {
                format!("sam deploy   # without {name} under Environment: Variables:")
            }
        }
    }

    fn service(&self) -> &str {
        self.service.as_deref().unwrap_or("iga")
    }
}

/// Sets a required setting that has no usable value.
pub fn required(deployment: &Deployment, name: &str, project: &str) -> String {
    let bucket =
        if project.is_empty() { "my-project-iga".to_owned() } else { format!("{project}-iga") };
    let value = match name {
        "GCS_BUCKET_NAME" => &bucket,
        "IGA_VERTEXAI_LOCATION" | "GCP_LOCATION" => "global",
        _ => "$(gcloud config get-value project)",
    };
    deployment.set(&[(name, value)])
}

pub fn use_model(deployment: &Deployment, target: &Target) -> String {
    deployment.set(&[
        ("IGA_VERTEXAI_IMAGE_MODEL_ID", target.model.id),
        ("IGA_VERTEXAI_LOCATION", &target.location),
    ])
}

pub fn use_fallbacks<'a>(
    deployment: &Deployment,
    targets: impl Iterator<Item = &'a Target>,
) -> String {
    let entries: Vec<_> =
        targets.map(|target| format!("{}/{}", target.location, target.model.id)).collect();
    deployment.set(&[("IGA_VERTEXAI_FALLBACK_MODELS", &entries.join(","))])
}

/// Gives the process an identity.
pub fn identity(deployment: &Deployment) -> String {
    match deployment.platform {
        Platform::Plain => SIGN_IN.to_owned(),
        Platform::CloudRun => format!("gcloud run services update {} --service-account=EMAIL", deployment.service()),
        Platform::Lambda => {
            "scripts/setup-aws.sh --project PROJECT --bucket BUCKET --account AWS_ACCOUNT   # then deploy \
             google-credentials.json, which it writes"
                .to_owned()
        }
    }
}

/// Fixes a credentials file that yields no token; `cause` is the failure's text in the log.
pub fn token(deployment: &Deployment, kind: &CredentialKind, path: &str, cause: &str) -> String {
    match kind {
        CredentialKind::ServiceAccount { email } => {
            format!("gcloud iam service-accounts keys create {path} --iam-account={email}")
        }
        CredentialKind::AuthorizedUser => SIGN_IN.to_owned(),
        CredentialKind::Impersonated { email } => {
            act_as(email, "roles/iam.serviceAccountTokenCreator", USER)
        }
        CredentialKind::Federated { pool, email, .. } => match (FederationStep::of(cause), email) {
            (FederationStep::Impersonation, Some(email)) => {
                act_as(email, "roles/iam.workloadIdentityUser", &principal(kind))
            }
            (FederationStep::TokenExchange | FederationStep::Impersonation, _) => {
                format!(
                    "gcloud iam workload-identity-pools providers list --workload-identity-pool={pool}"
                )
            }
            // A Lambda function has no other identity.
            (FederationStep::SubjectToken, _) if deployment.platform == Platform::Lambda => {
                identity(deployment)
            }
            (FederationStep::SubjectToken, _) => deployment.unset("GOOGLE_APPLICATION_CREDENTIALS"),
        },
    }
}

fn act_as(email: &str, role: &str, member: &str) -> String {
    format!(
        "gcloud iam service-accounts add-iam-policy-binding {email} --member={member} --role={role}"
    )
}

/// The member that roles must be granted to.
pub fn member(kind: &CredentialKind) -> String {
    match kind.email() {
        Some(email) => format!("serviceAccount:{email}"),
        None => principal(kind),
    }
}

/// The identity itself, before any impersonation. It is never the whole pool, whose other members
/// would get the role too.
fn principal(kind: &CredentialKind) -> String {
    match kind {
        CredentialKind::Federated { source: Source::Aws { .. }, pool, .. } => format!(
            "principalSet://iam.googleapis.com/{pool}/attribute.aws_role/arn:aws:sts::AWS_ACCOUNT:assumed-role/ROLE"
        ),
        CredentialKind::Federated { pool, .. } => {
            format!("principal://iam.googleapis.com/{pool}/subject/SUBJECT")
        }
        CredentialKind::ServiceAccount { .. }
        | CredentialKind::AuthorizedUser
        | CredentialKind::Impersonated { .. } => USER.to_owned(),
    }
}

pub fn project_role(project: &str, member: &str) -> String {
    format!(
        "gcloud projects add-iam-policy-binding {project} --member={member} --role=roles/aiplatform.user"
    )
}

pub fn enable_api(project: &str) -> String {
    format!("gcloud services enable aiplatform.googleapis.com --project {project}")
}

/// Leaves the choice of the billing account to the operator.
pub fn link_billing(project: &str) -> String {
    format!(
        "gcloud billing projects link {project} --billing-account=ACCOUNT   # one of: gcloud billing accounts list"
    )
}

pub fn quota(project: &str) -> String {
    format!(
        "https://console.cloud.google.com/iam-admin/quotas?service=aiplatform.googleapis.com&project={project}"
    )
}

/// Creates the bucket in the model's location, or in `us` if buckets cannot be there.
pub fn create_bucket(config: &Config) -> String {
    let location = match config.model.location.as_str() {
        "global" | "" => "us",
        location => location,
    };
    format!(
        "gcloud storage buckets create gs://{} --project {} --location {location}",
        config.bucket, config.project_id
    )
}

pub fn bucket_role(bucket: &str, member: &str, role: &str) -> String {
    format!(
        "gcloud storage buckets add-iam-policy-binding gs://{bucket} --member={member} --role={role}"
    )
}

pub fn remove(bucket: &str, name: &str) -> String {
    format!("gcloud storage rm gs://{bucket}/{name}")
}

pub const SIGN_IN: &str = "gcloud auth application-default login";
/// These show whether Google can be reached; if not, a firewall or a missing proxy is the usual reason.
pub const VERTEX_TEST: &str =
    "curl -sSI https://aiplatform.googleapis.com   # a proxy is set with HTTPS_PROXY";
pub const STORAGE_TEST: &str =
    "curl -sSI https://storage.googleapis.com   # a proxy is set with HTTPS_PROXY";
pub const SET_CLOCK: &str = "sudo timedatectl set-ntp true";
const USER: &str = "user:$(gcloud config get-value account)";
