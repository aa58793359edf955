//! The story of one image: resolve the model, call it, lift the image out, store it.

use crate::config::Target;
use crate::error::{Error, Kind};
use crate::google::storage::{Metadata, Storage};
use crate::google::vertex::{self, Vertex};
use crate::image::Image;
use crate::model::{Family, Model};
use crate::request::GenerateRequest;
use crate::telemetry::metrics;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::time::Instant;

pub struct Generator {
    pub vertex: Vertex,
    pub storage: Arc<Storage>,
    /// The configured model, then its fallbacks. Never empty.
    pub targets: Vec<Target>,
    /// The first of `targets` that is not known to be gone.
    pub current: AtomicUsize,
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
        if let Some(model) = request.model {
            let location = self.location_of(model);
            return self.call(&Target { model, location }, request, deadline).await;
        }
        let mut place = self.current.load(Ordering::Relaxed);
        loop {
            let target = &self.targets[place];
            let gone = match self.call(target, request, deadline).await {
                Err(error) if error.kind == Kind::ModelNotFound => error,
                result => return result,
            };
            place += 1;
            let Some(next) = self.targets.get(place) else {
                return Err(gone);
            };
            // Whoever finds out first says so; the others follow in silence.
            if self.current.fetch_max(place, Ordering::Relaxed) < place {
                tracing::warn!(
                    model = target.model.id,
                    location = target.location,
                    fallback = next.model.id,
                    fallback_location = next.location,
                    "model {} is not served in {}; using {} in {} from now on",
                    target.model.id,
                    target.location,
                    next.model.id,
                    next.location
                );
            }
        }
    }

    async fn call(
        &self,
        target: &Target,
        request: &GenerateRequest,
        deadline: Instant,
    ) -> Result<vertex::Generated, Error> {
        target.model.check(&request.params)?;
        if target.model.family == Family::Gemini && !request.params.add_watermark {
            tracing::info!(
                model = target.model.id,
                "add_watermark false is not honoured: this model always watermarks"
            );
        }
        self.vertex.image(target, &request.prompt, &request.params, deadline).await
    }

    /// Where a model named by the caller is asked for: where the settings name it, else where they ask
    /// for the first model, if it is served there.
    fn location_of(&self, model: &'static Model) -> String {
        match self.targets.iter().find(|target| target.model == model) {
            Some(target) => target.location.clone(),
            None => model.location_near(&self.targets[0].location).to_owned(),
        }
    }
}
