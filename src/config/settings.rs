//! The table of settings: names, defaults, meanings.

/// One row of the settings table.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// The first that is set wins.
    pub names: &'static [&'static str],
    pub preset: Preset,
    pub meaning: &'static str,
    /// An empty value is a value, not the same as an unset variable.
    pub may_be_empty: bool,
}

/// What a setting is when its variables are not set.
#[derive(Debug, PartialEq, Eq)]
pub enum Preset {
    Required,
    Unset,
    Value(&'static str),
    /// Depends on the platform; the text says how.
    ByPlatform(&'static str),
}

/// Every setting, in the order of the table in docs/settings.md.
pub const SETTINGS: &[&Setting] = &[
    &PORT,
    &HOST,
    &DEBUG_MODE,
    &CREDENTIALS_FILE,
    &PROJECT_ID,
    &LOCATION,
    &MODEL,
    &FALLBACKS,
    &BUCKET,
    &PREFIX,
    &DEFAULT_RATIO,
    &ADD_WATERMARK,
    &GENERATION_DEADLINE,
    &TRANSFER_BUDGET,
    &MAX_GENERATIONS,
    &RETRY_WINDOW,
    &SHARED_RETRIES,
    &ANSWER_WITHIN,
    &IMAGE_DIR,
    &STORAGE_ENDPOINT,
    &VERTEX_ENDPOINT,
    &METADATA_HOST,
];

pub const PORT: Setting = setting(
    &["PORT", "IGA_PORT"],
    Preset::Value("5007"),
    "TCP port, 0 for any that is free; `PORT` is Cloud Run's and wins",
);

pub const HOST: Setting =
    setting(&["IGA_HOST"], Preset::Value("0.0.0.0"), "IP address to listen on");

pub const DEBUG_MODE: Setting = setting(
    &["IGA_DEBUG_MODE"],
    Preset::Value("True"),
    "debug-level logs; true, false, 1, 0, yes or no, like every switch here",
);

pub const CREDENTIALS_FILE: Setting = setting(
    &["GOOGLE_APPLICATION_CREDENTIALS"],
    Preset::Unset,
    "path of a credentials file; else Application Default Credentials",
);

pub const PROJECT_ID: Setting = setting(
    &["IGA_VERTEXAI_PROJECT_ID", "GCP_PROJECT_ID"],
    Preset::Required,
    "Google Cloud project that pays for the images",
);

pub const LOCATION: Setting = setting(
    &["IGA_VERTEXAI_LOCATION", "GCP_LOCATION"],
    Preset::Required,
    "Vertex AI location: a region, `us`, `eu` or `global`",
);

pub const MODEL: Setting = setting(
    &["IGA_VERTEXAI_IMAGE_MODEL_ID"],
    Preset::Value("imagegeneration@006"),
    "model asked first",
);

pub const FALLBACKS: Setting = Setting {
    may_be_empty: true,
    ..setting(
        &["IGA_VERTEXAI_FALLBACK_MODELS"],
        Preset::Value("global/gemini-nano-banana-2.1,global/gemini-3.1-flash-image"),
        "asked in this order when Vertex AI says that the model is gone: `model` or `location/model`, \
     separated by commas; empty switches the fallback off",
    )
};

pub const BUCKET: Setting =
    setting(&["GCS_BUCKET_NAME"], Preset::Required, "Cloud Storage bucket that takes the images");

pub const PREFIX: Setting = Setting {
    may_be_empty: true,
    ..setting(
        &["IGA_GCS_IMAGE_PREFIX"],
        Preset::Value("images/iga/"),
        "folder in the bucket; empty is the bucket's root",
    )
};

pub const DEFAULT_RATIO: Setting = setting(
    &["IGA_DEFAULT_ASPECT_RATIO"],
    Preset::Value("1:1"),
    "ratio of requests that name none",
);

pub const ADD_WATERMARK: Setting = setting(
    &["IGA_ADD_WATERMARK"],
    Preset::Value("True"),
    "watermark of requests that do not say (Imagen only)",
);

pub const GENERATION_DEADLINE: Setting = setting(
    &["IGA_GENERATION_DEADLINE_SECONDS"],
    Preset::Value("180"),
    "one generation, all tries and the upload included; seconds here may have decimals",
);

pub const TRANSFER_BUDGET: Setting = setting(
    &["IGA_TRANSFER_BUDGET_MIB"],
    Preset::Value("128"),
    "memory that all images in transfer may hold together",
);

pub const MAX_GENERATIONS: Setting = setting(
    &["IGA_MAX_GENERATIONS"],
    Preset::Value("80"),
    "generations at once; beyond it 503 `IGA_OVERLOADED`",
);

pub const RETRY_WINDOW: Setting = setting(
    &["IGA_RETRY_WINDOW_SECONDS"],
    Preset::Value("5"),
    "how long after its end a generation still answers an equal request without a key; `off` switches \
     joining off",
);

pub const SHARED_RETRIES: Setting = setting(
    &["IGA_SHARED_RETRIES"],
    Preset::ByPlatform("`True` on Lambda, else `False`"),
    "recognise retries without a key across instances too, through the bucket",
);

pub const ANSWER_WITHIN: Setting = setting(
    &["IGA_ANSWER_WITHIN_SECONDS"],
    Preset::Value("off"),
    "answer 503 with `Retry-After: 1` after this long while the generation goes on; `off` waits to the end",
);

pub const IMAGE_DIR: Setting = setting(
    &["IGA_GENERATED_IMAGE_DIR"],
    Preset::Unset,
    "deprecated: accepted, one warning, no effect",
);

pub const STORAGE_ENDPOINT: Setting =
    setting(&["STORAGE_EMULATOR_HOST"], Preset::Unset, "Cloud Storage at another address");

pub const VERTEX_ENDPOINT: Setting =
    setting(&["IGA_VERTEXAI_ENDPOINT"], Preset::Unset, "Vertex AI at another address");

pub const METADATA_HOST: Setting = setting(
    &["GCE_METADATA_HOST"],
    Preset::Unset,
    "metadata server at another address: `host` or `host:port`",
);

const fn setting(names: &'static [&'static str], preset: Preset, meaning: &'static str) -> Setting {
    Setting { names, preset, meaning, may_be_empty: false }
}
