//! The story of one image: resolve the model, call it, lift the image out, store it.

use crate::config::Target;
use crate::error::Error;
use crate::google::storage::{Metadata, Storage};
use crate::google::vertex::{self, Vertex};
use crate::image::Image;
use crate::model::Family;
use crate::request::GenerateRequest;
use crate::targets::Targets;
use crate::telemetry::metrics;
use std::sync::Arc;
use tokio::time::Instant;

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

/// Whose image it is, for the object's name and metadata.
#[derive(Debug, Clone)]
pub struct Origin {
    pub request_id: String,
    pub workflow_id: Option<String>,
}

/// A paid image on its way into the bucket. Its name is fixed, so that storing it again is safe.
pub struct Unstored {
    name: String,
    image: Image,
    metadata: Metadata,
    model: String,
}

impl Generator {
    /// `targets` holds the configured model, then its fallbacks; it is not empty.
    pub fn new(vertex: Vertex, storage: Arc<Storage>, targets: Targets) -> Generator {
        Generator { vertex, storage, targets }
    }

    /// Has one image made, which is then to be stored.
    pub async fn generate(
        &self,
        request: &GenerateRequest,
        origin: &Origin,
        deadline: Instant,
    ) -> Result<Unstored, Error> {
        self.storage.check_writable(deadline).await?;
        let vertex::Generated { image, model } = self.image(request, deadline).await?;
        metrics::image_paid(&model);
        let stem = format!("{}_{}", origin.request_id, crate::id::random_hex::<4>());
        let mut metadata = Metadata::from([
            ("request_id".to_owned(), origin.request_id.clone()),
            ("model".to_owned(), model.clone()),
            ("prompt_sha256".to_owned(), request.prompt_sha256.clone()),
            ("aspect_ratio".to_owned(), request.params.aspect_ratio.clone()),
        ]);
        metadata.extend(origin.workflow_id.clone().map(|id| ("workflow_id".to_owned(), id)));
        Ok(Unstored { name: self.storage.image_name(&stem, &image), image, metadata, model })
    }

    /// Stores an image, or confirms that it is stored.
    pub async fn store(&self, unstored: &Unstored, deadline: Instant) -> Result<Generated, Error> {
        let Unstored { name, image, metadata, model } = unstored;
        self.storage.put_image(name, image, metadata, deadline).await?;
        Ok(Generated { object: name.clone(), model: model.clone() })
    }

    /// The image and the model that made it: the one asked for, else the first fallback that is served.
    async fn image(
        &self,
        request: &GenerateRequest,
        deadline: Instant,
    ) -> Result<vertex::Generated, Error> {
        match &request.target {
            Some(target) => self.image_from(target, request, deadline).await,
            None => {
                let image_from = |target| self.image_from(target, request, deadline);
                self.targets.ask(&request.params, deadline, image_from).await
            }
        }
    }

    async fn image_from(
        &self,
        target: &Target,
        request: &GenerateRequest,
        deadline: Instant,
    ) -> Result<vertex::Generated, Error> {
        if target.model.family == Family::Gemini && !request.params.add_watermark {
            tracing::info!(
                model = target.model.id,
                "add_watermark false is not honoured: this model always watermarks"
            );
        }
        self.vertex.image(target, &request.prompt, &request.params, deadline).await
    }
}
