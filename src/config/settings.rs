//! The table of settings: names, defaults, meanings.

/// One row of the settings table.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// The names of its variables; the first one that is set wins.
    pub names: &'static [&'static str],
    pub preset: Preset,
    pub meaning: &'static str,
    /// Whether an empty value counts as set.
    pub may_be_empty: bool,
}

/// The value of a setting whose variables are not set.
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
    &LOG_FORMAT,
    &FALLBACK_WHEN_BUSY,
    &LABELS,
    &REQUEST_TYPE,
    &MAX_CONNECTIONS,
    &HTTPS_PROXY,
    &HTTP_PROXY,
    &ALL_PROXY,
    &NO_PROXY,
];

/// The proxies that the HTTP clients read from the environment.
pub const PROXIES: [&Setting; 3] = [&HTTPS_PROXY, &HTTP_PROXY, &ALL_PROXY];

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
    "path of a credentials file; otherwise Application Default Credentials",
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
    "model asked first: any id that begins with `gemini-`, `imagen` or `imagegeneration`",
);

pub const FALLBACKS: Setting = Setting {
    may_be_empty: true,
    ..setting(
        &["IGA_VERTEXAI_FALLBACK_MODELS"],
        Preset::Value("gemini-nano-banana-2.1,gemini-3.1-flash-image,gemini-2.5-flash-image"),
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
        "folder in the bucket; empty means the bucket's root",
    )
};

pub const DEFAULT_RATIO: Setting = setting(
    &["IGA_DEFAULT_ASPECT_RATIO"],
    Preset::Value("1:1"),
    "ratio of requests without `aspect_ratio`",
);

pub const ADD_WATERMARK: Setting = setting(
    &["IGA_ADD_WATERMARK"],
    Preset::Value("True"),
    "watermark of requests without `add_watermark` (Imagen only)",
);

pub const GENERATION_DEADLINE: Setting = setting(
    &["IGA_GENERATION_DEADLINE_SECONDS"],
    Preset::Value("180"),
    "limit for one generation, with all tries and the upload; seconds may have decimals",
);

pub const TRANSFER_BUDGET: Setting = setting(
    &["IGA_TRANSFER_BUDGET_MIB"],
    Preset::Value("128"),
    "memory for all images in transfer together",
);

pub const MAX_GENERATIONS: Setting = setting(
    &["IGA_MAX_GENERATIONS"],
    Preset::Value("80"),
    "generations at once; further requests get 503 `IGA_OVERLOADED`",
);

pub const RETRY_WINDOW: Setting = setting(
    &["IGA_RETRY_WINDOW_SECONDS"],
    Preset::Value("5"),
    "how long a finished generation still answers an equal request without a key; `off` switches joining off",
);

pub const SHARED_RETRIES: Setting = setting(
    &["IGA_SHARED_RETRIES"],
    Preset::ByPlatform("`True` on Cloud Run and Lambda, otherwise `False`"),
    "recognise retries without a key across instances, through the bucket",
);

pub const ANSWER_WITHIN: Setting = setting(
    &["IGA_ANSWER_WITHIN_SECONDS"],
    Preset::Value("off"),
    "answer 503 with `Retry-After: 1` after this time while the generation goes on; `off` waits for its end",
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
    "metadata server at another address: `host` or `host:port`, IPv6 in brackets",
);

pub const LOG_FORMAT: Setting = setting(
    &["IGA_LOG_FORMAT"],
    Preset::Value("auto"),
    "`json`, `text`, or `auto`: text on a terminal",
);

pub const FALLBACK_WHEN_BUSY: Setting = setting(
    &["IGA_FALLBACK_WHEN_BUSY"],
    Preset::Value("False"),
    "go down the fallback list also when a model stays busy (429, 503)",
);

pub const LABELS: Setting = setting(
    &["IGA_VERTEXAI_LABELS"],
    Preset::Unset,
    "labels for billing, such as `team=podcast,env=prod`",
);

pub const REQUEST_TYPE: Setting = setting(
    &["IGA_VERTEXAI_REQUEST_TYPE"],
    Preset::Unset,
    "`dedicated`: only provisioned throughput; `shared`: never; unset: provisioned first",
);

pub const MAX_CONNECTIONS: Setting = setting(
    &["IGA_MAX_CONNECTIONS"],
    Preset::Value("2048"),
    "open connections; further ones wait unaccepted",
);

pub const HTTPS_PROXY: Setting = setting(
    &["HTTPS_PROXY", "https_proxy"],
    Preset::Unset,
    "proxy for everything sent over https: an `http://` URL, with user and password if it needs them",
);

pub const HTTP_PROXY: Setting = setting(
    &["HTTP_PROXY", "http_proxy"],
    Preset::Unset,
    "proxy for access tokens over plain http, which Google's endpoints never use",
);

pub const ALL_PROXY: Setting =
    setting(&["ALL_PROXY", "all_proxy"], Preset::Unset, "proxy where neither of the two is set");

pub const NO_PROXY: Setting = setting(
    &["NO_PROXY", "no_proxy"],
    Preset::Unset,
    "hosts and networks that are reached without a proxy; this machine, link-local addresses and metadata servers \
     always are",
);

const fn setting(names: &'static [&'static str], preset: Preset, meaning: &'static str) -> Setting {
    Setting { names, preset, meaning, may_be_empty: false }
}
