//! Which model is asked, and where: the configured one, or a fallback if that one is gone.

use crate::config::{Config, Target};
use crate::error::{Error, Kind};
use crate::model::Params;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The configured model and its fallbacks, and which of them are gone.
pub struct Targets {
    /// The configured model, then its fallbacks. Never empty.
    list: Vec<Target>,
    fallback_when_busy: bool,
    /// The time until which each target counts as gone.
    gone_until: Mutex<Vec<Option<Instant>>>,
}

impl Targets {
    pub fn new(config: &Config) -> Targets {
        let list: Vec<_> = config.targets().cloned().collect();
        let gone_until = Mutex::new(vec![None; list.len()]);
        Targets { list, fallback_when_busy: config.fallback_when_busy, gone_until }
    }

    /// Calls `ask` for one target after the other, skips those that are gone, and returns the first
    /// result.
    ///
    /// # Errors
    /// If every target fails: the error of the first busy one, otherwise the parameter that no fallback takes,
    /// otherwise the last 404.
    pub async fn ask<'a, T, F>(
        &'a self,
        params: &Params,
        deadline: Instant,
        ask: impl Fn(&'a Target) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (mut busy, mut refused, mut not_found) = (None, None, None);
        let mut found_gone = Vec::new();
        for index in self.indexes_to_ask() {
            let target = &self.list[index];
            if let Err(error) = target.model.check(params) {
                // The model that the operator chose decides what a request may ask for.
                if target.model == self.list[0].model {
                    return Err(error);
                }
                refused.get_or_insert(error);
                continue;
            }
            match ask(target).await {
                Err(error) if error.kind == Kind::ModelNotFound => {
                    if self.remember_gone(index) {
                        found_gone.push(target);
                    }
                    not_found = Some((index, error));
                }
                Err(error) if self.may_skip_busy(&error, deadline) => {
                    let Target { model, location } = target;
                    tracing::warn!(
                        model = model.id,
                        location,
                        "model {} is busy in {location}",
                        model.id
                    );
                    busy.get_or_insert(error);
                }
                result => {
                    warn_of(&found_gone, Some(target));
                    return result;
                }
            }
        }
        warn_of(&found_gone, None);
        let not_found = not_found.map(|(index, error)| self.with_untried_advice(index, error));
        Err(busy.or(refused).or(not_found).expect("at least one target is checked or asked"))
    }

    /// The target that is asked first.
    pub fn first(&self) -> &Target {
        &self.list[self.indexes_to_ask()[0]]
    }

    /// The indexes in `list` to ask, in order: all that are not gone, or all if every one is.
    fn indexes_to_ask(&self) -> Vec<usize> {
        let mut gone_until = self.gone_until.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let is_gone = |until: &Option<Instant>| until.is_some_and(|until| until > now);
        if gone_until.iter().all(is_gone) {
            gone_until.fill(None);
        }
        (0..self.list.len()).filter(|index| !is_gone(&gone_until[*index])).collect()
    }

    /// Marks a target as gone. Returns true if this request is the first to notice.
    fn remember_gone(&self, index: usize) -> bool {
        let mut gone_until = self.gone_until.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let before = gone_until[index].replace(now + GONE_FOR);
        before.is_none_or(|until| until <= now)
    }

    fn may_skip_busy(&self, error: &Error, deadline: Instant) -> bool {
        let is_busy = matches!(error.kind, Kind::ResourceExhausted | Kind::VertexUnavailable);
        self.fallback_when_busy && is_busy && Instant::now() < deadline
    }

    /// The error of the target at `index`, with advice that does not propose the targets of the list.
    fn with_untried_advice(&self, index: usize, error: Error) -> Error {
        let Target { model, location } = &self.list[index];
        let tried: Vec<_> =
            self.list.iter().map(|target| (target.model.id, target.location.as_str())).collect();
        let details = error.to_string();
        match details.strip_prefix(&model.not_served_hint(location)) {
            Some(rest) => {
                let hint = model.not_served_hint_after(location, &tried);
                Kind::ModelNotFound.because(format!("{hint}{rest}"))
            }
            None => error,
        }
    }
}

/// One warning for all targets that a request was the first to find gone.
fn warn_of(gone: &[&Target], next: Option<&Target>) {
    let Some(first) = gone.first() else {
        return;
    };
    let shown = |target: &&Target| format!("{} in {}", target.model.id, target.location);
    let all = gone.iter().map(shown).collect::<Vec<_>>().join(", ");
    let using =
        next.map_or("no other model is left".to_owned(), |next| format!("using {}", shown(&next)));
    tracing::warn!(
        model = first.model.id,
        location = first.location,
        fallback = next.map(|next| next.model.id),
        fallback_location = next.map(|next| next.location.as_str()),
        "not served: {all}; {using} for the next {} minutes",
        GONE_FOR.as_secs() / 60
    );
}

/// How long a target counts as gone.
const GONE_FOR: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ImageSize;
    use std::cell::RefCell;
    use std::collections::HashMap;

    fn targets(settings: &[(&str, &str)]) -> Targets {
        let mut vars = HashMap::from([
            ("GCP_PROJECT_ID", "my-project"),
            ("GCP_LOCATION", "us-central1"),
            ("GCS_BUCKET_NAME", "my-bucket"),
        ]);
        vars.extend(settings.iter().copied());
        let vars = |name: &str| vars.get(name).map(|text| text.to_string());
        Targets::new(&Config::from_vars(vars).unwrap())
    }

    fn square() -> Params {
        Params {
            aspect_ratio: "1:1".to_owned(),
            add_watermark: true,
            negative_prompt: None,
            seed: None,
            image_size: None,
            person_generation: None,
            output_mime_type: None,
        }
    }

    /// The result of a request and the targets that it asks, if some of them fail.
    async fn ask(
        targets: &Targets,
        params: &Params,
        failing: &[(&str, Kind)],
    ) -> (Result<String, Error>, Vec<String>) {
        let asked = RefCell::new(Vec::new());
        let deadline = Instant::now() + Duration::from_secs(60);
        let result = targets
            .ask(params, deadline, |target| {
                asked.borrow_mut().push(format!("{}/{}", target.location, target.model.id));
                let failure = failing.iter().find(|(id, _)| *id == target.model.id);
                let hint = target.model.not_served_hint(&target.location);
                std::future::ready(match failure {
                    Some((_, Kind::ModelNotFound)) => {
                        Err(Kind::ModelNotFound.because(format!("{hint} Vertex AI: gone")))
                    }
                    Some((id, kind)) => Err(kind.because(*id)),
                    None => Ok(target.model.id.to_owned()),
                })
            })
            .await;
        (result, asked.into_inner())
    }

    const DEFAULT: &str = "us-central1/imagegeneration@006";
    const NANO: &str = "global/gemini-nano-banana-2.1";
    const FLASH: &str = "global/gemini-3.1-flash-image";
    const REGIONAL: &str = "us-central1/gemini-2.5-flash-image";
    const GONE: (&str, Kind) = ("imagegeneration@006", Kind::ModelNotFound);

    #[tokio::test(start_paused = true)]
    async fn a_gone_model_is_asked_again_after_ten_minutes() {
        let targets = targets(&[]);
        assert_eq!(ask(&targets, &square(), &[GONE]).await.1, [DEFAULT, NANO]);
        assert_eq!(ask(&targets, &square(), &[GONE]).await.1, [NANO]);
        tokio::time::advance(GONE_FOR - Duration::from_secs(1)).await;
        assert_eq!(ask(&targets, &square(), &[]).await.1, [NANO]);
        tokio::time::advance(Duration::from_secs(1)).await;
        let (result, asked) = ask(&targets, &square(), &[]).await;
        assert_eq!(
            (result.unwrap().as_str(), asked),
            ("imagegeneration@006", vec![DEFAULT.to_owned()])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_whole_list_is_gone_the_next_request_begins_at_the_top() {
        let targets = targets(&[]);
        let all = [
            GONE,
            ("gemini-nano-banana-2.1", Kind::ModelNotFound),
            ("gemini-3.1-flash-image", Kind::ModelNotFound),
            ("gemini-2.5-flash-image", Kind::ModelNotFound),
        ];
        for _ in 0..2 {
            let (result, asked) = ask(&targets, &square(), &all).await;
            assert_eq!(asked, [DEFAULT, NANO, FLASH, REGIONAL]);
            let error = result.unwrap_err();
            assert_eq!(error.kind, Kind::ModelNotFound);
            let details = error.to_string();
            assert!(details.ends_with("Vertex AI: gone"), "{details}");
            let advice = details.split("try ").nth(1).unwrap();
            assert!(advice.contains("gemini-3-pro-image (global)"), "{details}");
            assert!(
                !advice.contains("nano-banana") && !advice.contains("3.1-flash-image"),
                "{details}"
            );
        }
        assert_eq!(ask(&targets, &square(), &[]).await.1, [DEFAULT]);
    }

    #[tokio::test(start_paused = true)]
    async fn another_error_changes_nothing_for_other_requests() {
        let targets = targets(&[]);
        for kind in [Kind::InvalidArgument, Kind::VertexApi, Kind::ResourceExhausted] {
            let (result, asked) = ask(&targets, &square(), &[(GONE.0, kind)]).await;
            assert_eq!((result.unwrap_err().kind, asked), (kind, vec![DEFAULT.to_owned()]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_parameter_goes_to_the_first_fallback_that_takes_it() {
        let seed = Params { seed: Some(7), ..square() };
        let small = Params { image_size: Some(ImageSize::Px512), ..square() };
        let wide = Params { aspect_ratio: "8:1".to_owned(), ..square() };
        let negative = Params { negative_prompt: Some("dogs".to_owned()), ..square() };
        for (params, model) in [(seed, FLASH), (small, FLASH), (wide, NANO)] {
            let (result, asked) = ask(&targets(&[]), &params, &[GONE]).await;
            assert!(result.is_ok());
            assert_eq!(asked, [DEFAULT, model], "{params:?}");
        }
        let (result, asked) = ask(&targets(&[]), &negative, &[GONE]).await;
        let error = result.unwrap_err();
        assert_eq!((error.kind, asked.len()), (Kind::UnsupportedParameter, 1));
        assert!(error.to_string().contains("gemini-nano-banana-2.1"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_configured_model_decides_what_it_takes() {
        let targets = targets(&[("IGA_VERTEXAI_IMAGE_MODEL_ID", "gemini-nano-banana-2.1")]);
        let seed = Params { seed: Some(7), ..square() };
        let not_here = ("gemini-nano-banana-2.1", Kind::ModelNotFound);
        let (result, asked) = ask(&targets, &seed, &[]).await;
        assert_eq!((result.unwrap_err().kind, asked.len()), (Kind::UnsupportedParameter, 0));
        let (result, asked) = ask(&targets, &square(), &[not_here]).await;
        assert_eq!(result.unwrap(), "gemini-3.1-flash-image");
        assert_eq!(asked, ["us-central1/gemini-nano-banana-2.1", NANO, FLASH], "elsewhere first");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_model_is_skipped_only_if_the_settings_say_so() {
        let busy = [
            ("gemini-3-pro-image", Kind::ResourceExhausted),
            ("gemini-nano-banana-2.1", Kind::VertexUnavailable),
        ];
        let model = ("IGA_VERTEXAI_IMAGE_MODEL_ID", "gemini-3-pro-image");
        let settings = [model, ("IGA_VERTEXAI_LOCATION", "global")];
        let (result, asked) = ask(&targets(&settings), &square(), &busy).await;
        assert_eq!((result.unwrap_err().kind, asked.len()), (Kind::ResourceExhausted, 1));

        let switched = [&settings[..], &[("IGA_FALLBACK_WHEN_BUSY", "yes")]].concat();
        let patient = targets(&switched);
        for _ in 0..2 {
            let (result, asked) = ask(&patient, &square(), &busy).await;
            assert_eq!(result.unwrap(), "gemini-3.1-flash-image");
            assert_eq!(asked, ["global/gemini-3-pro-image", NANO, FLASH]);
        }
        let all = [
            busy[0],
            busy[1],
            ("gemini-3.1-flash-image", Kind::ModelNotFound),
            ("gemini-2.5-flash-image", Kind::ResourceExhausted),
        ];
        let (result, asked) = ask(&patient, &square(), &all).await;
        assert_eq!(
            (result.unwrap_err().to_string().as_str(), asked.len()),
            ("gemini-3-pro-image", 4)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_busy_fallback_is_asked_past_the_deadline() {
        let targets = targets(&[("IGA_FALLBACK_WHEN_BUSY", "yes")]);
        let calls = RefCell::new(0);
        let result: Result<(), _> = targets
            .ask(&square(), Instant::now() + Duration::from_secs(1), |_| async {
                *calls.borrow_mut() += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err(Kind::VertexUnavailable.because("too late"))
            })
            .await;
        assert_eq!((result.unwrap_err().kind, calls.into_inner()), (Kind::VertexUnavailable, 1));
    }
}
