//! The steps to one image: choose and call the model, then name and store the image.

use crate::config::Target;
use crate::error::Error;
use crate::google::storage::{MODEL, Metadata, Storage, Upload};
use crate::google::vertex::{MayPay, Paid, Vertex};
use crate::model::Family;
use crate::request::GenerateRequest;
use crate::targets::Targets;
use crate::telemetry::metrics;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::time::Instant;

/// Generates and stores images. It knows nothing of flights and leases.
pub struct Generator {
    pub vertex: Vertex,
    pub storage: Arc<Storage>,
    targets: Targets,
}

/// An image that Cloud Storage has confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The object's name in the bucket.
    pub object: String,
    /// The id of the model that really made it.
    pub model: String,
}

/// The request that an image is made for, as the image's metadata name it.
#[derive(Debug, Clone)]
pub struct Origin {
    pub request_id: String,
    pub workflow_id: Option<String>,
}

/// The name under which an image will be stored, and the metadata that its lease adds.
#[derive(Debug, Clone)]
pub struct Naming {
    /// The object's name without prefix and extension.
    pub stem: String,
    /// Another instance may have stored an image of the same request under this stem.
    pub is_inherited: bool,
    pub metadata: Metadata,
}

impl Generator {
    /// `targets` holds the configured model, then its fallbacks; it is not empty.
    pub fn new(vertex: Vertex, storage: Arc<Storage>, targets: Targets) -> Generator {
        Generator { vertex, storage, targets }
    }

    /// Opens the connections that a generation needs, side by side and while the access token is fetched.
    pub fn open_connections(&self, request: &GenerateRequest) {
        let target = request.target.as_ref().unwrap_or_else(|| self.targets.first());
        let model = self.vertex.base_url(target);
        self.vertex.client.http.open_ahead([self.storage.endpoint(), &model]);
    }

    /// Generates one image, which must then be stored.
    ///
    /// # Errors
    /// The last error of Vertex AI, or that of `may_pay`.
    pub async fn generate(
        &self,
        request: &GenerateRequest,
        may_pay: MayPay<'_>,
        deadline: Instant,
    ) -> Result<Paid, Error> {
        let paid = self.image(request, may_pay, deadline).await?;
        metrics::image_paid(&paid.model);
        Ok(paid)
    }

    /// The upload of a paid image.
    pub fn upload(
        &self,
        paid: Paid,
        request: &GenerateRequest,
        origin: &Origin,
        naming: Naming,
    ) -> Upload {
        let Paid { image, model } = paid;
        let Naming { stem, is_inherited, mut metadata } = naming;
        metadata.extend([
            ("request_id".to_owned(), origin.request_id.clone()),
            (MODEL.to_owned(), model),
            ("prompt_sha256".to_owned(), request.prompt_sha256.clone()),
            ("aspect_ratio".to_owned(), request.params.aspect_ratio.clone()),
        ]);
        metadata.extend(origin.workflow_id.clone().map(|id| ("workflow_id".to_owned(), id)));
        Upload {
            name: self.storage.image_name(&stem, &image),
            image,
            metadata,
            may_exist: AtomicBool::new(is_inherited),
        }
    }

    /// Stores an image, or confirms that it is stored.
    ///
    /// # Errors
    /// The last error of Cloud Storage.
    pub async fn store(&self, upload: &Upload, deadline: Instant) -> Result<Generated, Error> {
        let stored = self.storage.put_image(upload, deadline).await?;
        let model = stored.model.or_else(|| upload.metadata.get(MODEL).cloned());
        Ok(Generated { object: stored.object, model: model.unwrap_or_default() })
    }

    /// Calls the model that the request names, otherwise the configured model or its fallbacks.
    async fn image(
        &self,
        request: &GenerateRequest,
        may_pay: MayPay<'_>,
        deadline: Instant,
    ) -> Result<Paid, Error> {
        match &request.target {
            Some(target) => self.image_from(target, request, may_pay, deadline).await,
            None => {
                let image_from = |target| self.image_from(target, request, may_pay, deadline);
                self.targets.ask(&request.params, deadline, image_from).await
            }
        }
    }

    async fn image_from(
        &self,
        target: &Target,
        request: &GenerateRequest,
        may_pay: MayPay<'_>,
        deadline: Instant,
    ) -> Result<Paid, Error> {
        if target.model.family == Family::Gemini && !request.params.add_watermark {
            tracing::info!(
                model = target.model.id,
                "add_watermark false is not honoured: this model always watermarks"
            );
        }
        self.vertex.image(target, &request.prompt, &request.params, may_pay, deadline).await
    }
}
