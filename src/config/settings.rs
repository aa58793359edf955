//! The table of settings: names, defaults, meanings.

/// One line of the settings table.
pub struct Setting {
    /// The first that is set wins.
    pub names: &'static [&'static str],
    pub preset: Preset,
    pub meaning: &'static str,
}

/// What a setting is when nobody sets it.
pub enum Preset {
    Required,
    Unset,
    Value(&'static str),
    /// Depends on the platform; the text says how.
    ByPlatform(&'static str),
}

/// Every setting, in the order of the table in docs/settings.md.
pub const SETTINGS: &[Setting] = &[
    setting(
        PORT,
        Preset::Value("5007"),
        "TCP port, 0 for any that is free; `PORT` is Cloud Run's and wins",
    ),
    setting(&["IGA_HOST"], Preset::Value("0.0.0.0"), "IP address to listen on"),
    setting(
        &["IGA_DEBUG_MODE"],
        Preset::Value("True"),
        "debug-level logs; true, false, 1, 0, yes or no, like every switch here",
    ),
    setting(
        &["GOOGLE_APPLICATION_CREDENTIALS"],
        Preset::Unset,
        "path of a credentials file; else Application Default Credentials",
    ),
    setting(PROJECT_ID, Preset::Required, "Google Cloud project that pays for the images"),
    setting(LOCATION, Preset::Required, "Vertex AI location: a region, `us`, `eu` or `global`"),
    setting(
        &["IGA_VERTEXAI_IMAGE_MODEL_ID"],
        Preset::Value("imagegeneration@006"),
        "model asked first",
    ),
    setting(
        &["IGA_VERTEXAI_FALLBACK_MODELS"],
        Preset::Value("global/gemini-nano-banana-2.1,global/gemini-3.1-flash-image"),
        "asked in this order when Vertex AI says that the model is gone: `model` or `location/model`, \
         separated by commas; empty switches the fallback off",
    ),
    setting(&["GCS_BUCKET_NAME"], Preset::Required, "Cloud Storage bucket that takes the images"),
    setting(
        &["IGA_GCS_IMAGE_PREFIX"],
        Preset::Value("images/iga/"),
        "folder in the bucket; empty is the bucket's root",
    ),
    setting(&[DEFAULT_RATIO], Preset::Value("1:1"), "ratio of requests that name none"),
    setting(
        &["IGA_ADD_WATERMARK"],
        Preset::Value("True"),
        "watermark of requests that do not say (Imagen only)",
    ),
    setting(
        &["IGA_GENERATION_DEADLINE_SECONDS"],
        Preset::Value("180"),
        "one generation, all tries and the upload included; seconds here may have decimals",
    ),
    setting(
        &["IGA_TRANSFER_BUDGET_MIB"],
        Preset::Value("128"),
        "memory that all images in transfer may hold together",
    ),
    setting(
        &["IGA_MAX_GENERATIONS"],
        Preset::Value("80"),
        "generations at once; beyond it 503 `IGA_OVERLOADED`",
    ),
    setting(
        &["IGA_RETRY_WINDOW_SECONDS"],
        Preset::Value("5"),
        "how long after its end a generation still answers an equal request without a key; `off` switches \
         joining off",
    ),
    setting(
        &["IGA_SHARED_RETRIES"],
        Preset::ByPlatform("`True` on Lambda, else `False`"),
        "recognise retries without a key across instances too, through the bucket",
    ),
    setting(
        &["IGA_ANSWER_WITHIN_SECONDS"],
        Preset::Value("off"),
        "answer 503 with `Retry-After: 1` after this long while the generation goes on; `off` waits to the end",
    ),
    setting(
        &["IGA_GENERATED_IMAGE_DIR"],
        Preset::Unset,
        "deprecated: accepted, one warning, no effect",
    ),
    setting(&["STORAGE_EMULATOR_HOST"], Preset::Unset, "Cloud Storage at another address"),
    setting(&["IGA_VERTEXAI_ENDPOINT"], Preset::Unset, "Vertex AI at another address"),
    setting(
        &["GCE_METADATA_HOST"],
        Preset::Unset,
        "metadata server at another address: `host` or `host:port`",
    ),
];

pub const PORT: &[&str] = &["PORT", "IGA_PORT"];
pub const PROJECT_ID: &[&str] = &["IGA_VERTEXAI_PROJECT_ID", "GCP_PROJECT_ID"];
pub const DEFAULT_RATIO: &str = "IGA_DEFAULT_ASPECT_RATIO";
pub const LOCATION: &[&str] = &["IGA_VERTEXAI_LOCATION", "GCP_LOCATION"];

const fn setting(names: &'static [&'static str], preset: Preset, meaning: &'static str) -> Setting {
    Setting { names, preset, meaning }
}
