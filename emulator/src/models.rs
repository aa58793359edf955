//! The models: their parameters, the locations that serve them, and which are retired.

/// Models that share an API and its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Imagen,
    /// `gemini-2.5-flash-image`: always 1K, without thinking.
    Gemini25,
    Gemini3,
    /// Accepts no sampling parameters and shows no drafts.
    NanoBanana,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Model {
    pub id: &'static str,
    pub family: Family,
    pub ratios: &'static [&'static str],
    /// Values of `imageSize` (Gemini) or `sampleImageSize` (Imagen).
    pub sizes: &'static [&'static str],
    pub thinking: &'static [&'static str],
    pub locations: &'static [&'static str],
    pub retired: bool,
}

impl Model {
    pub fn all() -> &'static [Self] {
        MODELS
    }

    pub fn find(id: &str) -> Option<&'static Self> {
        MODELS.iter().find(|model| model.id == id)
    }

    /// The name that errors have.
    pub fn resource(project: &str, location: &str, id: &str) -> String {
        format!("projects/{project}/locations/{location}/publishers/google/models/{id}")
    }

    pub fn served_in(&self, location: &str) -> bool {
        match self.family {
            Family::Imagen => location.contains('-'),
            Family::Gemini25 | Family::Gemini3 | Family::NanoBanana => {
                self.locations.contains(&location)
            }
        }
    }

    pub fn takes_negative_prompt(&self) -> bool {
        ["imagegeneration@006", "imagen-3.0-generate-001", "imagen-3.0-fast-generate-001"]
            .contains(&self.id)
    }

    pub fn watermarks_by_default(&self) -> bool {
        !self.is_early_imagen()
    }

    pub fn max_samples(&self) -> f64 {
        if self.is_early_imagen() { 8.0 } else { 4.0 }
    }

    fn is_early_imagen(&self) -> bool {
        ["imagegeneration@002", "imagegeneration@005"].contains(&self.id)
    }
}

/// Width and height of an image in this ratio and size.
pub(crate) fn pixels(family: Family, ratio: &str, size: &str) -> (u32, u32) {
    let table = match family {
        Family::Imagen => IMAGEN_PIXELS,
        Family::Gemini25 => GEMINI_25_PIXELS,
        Family::Gemini3 | Family::NanoBanana => GEMINI_3_PIXELS,
    };
    let found = table.iter().find(|(known, ..)| *known == ratio);
    let (width, height) = found.map_or((1024, 1024), |&(_, width, height)| (width, height));
    match size {
        "512" => (width / 2, height / 2),
        "2K" => (width * 2, height * 2),
        "4K" => (width * 4, height * 4),
        _ => (width, height),
    }
}

const fn imagen(
    id: &'static str,
    ratios: &'static [&'static str],
    sizes: &'static [&'static str],
) -> Model {
    Model {
        id,
        family: Family::Imagen,
        ratios,
        sizes,
        thinking: &[],
        locations: &[],
        retired: true,
    }
}

const fn gemini(
    id: &'static str,
    family: Family,
    ratios: &'static [&'static str],
    sizes: &'static [&'static str],
    thinking: &'static [&'static str],
) -> Model {
    Model { id, family, ratios, sizes, thinking, locations: &["global"], retired: false }
}

const MODELS: &[Model] = &[
    imagen("imagegeneration@002", &["1:1"], OLD_SIZES),
    imagen("imagegeneration@005", &["1:1", "9:16"], OLD_SIZES),
    imagen("imagegeneration@006", FIVE, OLD_SIZES),
    imagen("imagen-3.0-generate-001", FIVE, OLD_SIZES),
    imagen("imagen-3.0-generate-002", FIVE, OLD_SIZES),
    imagen("imagen-3.0-fast-generate-001", FIVE, OLD_SIZES),
    imagen("imagen-3.0-capability-001", FIVE, OLD_SIZES),
    imagen("imagen-3.0-capability-002", FIVE, OLD_SIZES),
    imagen("imagen-4.0-generate-001", FIVE, &["1K", "2K"]),
    imagen("imagen-4.0-ultra-generate-001", FIVE, &["1K", "2K"]),
    imagen("imagen-4.0-fast-generate-001", FIVE, &["1K"]),
    Model {
        locations: GEMINI_25_LOCATIONS,
        ..gemini("gemini-2.5-flash-image", Family::Gemini25, TEN, &[], &[])
    },
    gemini("gemini-3.1-flash-lite-image", Family::Gemini3, FOURTEEN, &["1K"], &["MINIMAL", "HIGH"]),
    gemini(
        "gemini-3.1-flash-image",
        Family::Gemini3,
        FOURTEEN,
        &["512", "1K", "2K", "4K"],
        &["MINIMAL", "HIGH"],
    ),
    gemini("gemini-3-pro-image", Family::Gemini3, TEN, &["1K", "2K", "4K"], LEVELS),
    gemini("gemini-nano-banana-2.1", Family::NanoBanana, FOURTEEN, &["1K", "2K", "4K"], LEVELS),
    retired("gemini-2.0-flash-preview-image-generation", Family::Gemini25),
    retired("gemini-2.5-flash-image-preview", Family::Gemini25),
    retired("gemini-3-pro-image-preview", Family::Gemini3),
    retired("gemini-3.1-flash-image-preview", Family::Gemini3),
];

const fn retired(id: &'static str, family: Family) -> Model {
    let sizes: &[&str] = if matches!(family, Family::Gemini25) { &[] } else { &["1K", "2K", "4K"] };
    let thinking: &[&str] = if matches!(family, Family::Gemini25) { &[] } else { LEVELS };
    Model { retired: true, ..gemini(id, family, TEN, sizes, thinking) }
}

const OLD_SIZES: &[&str] = &["64", "128", "256", "512", "1024", "2048", "4096"];
const LEVELS: &[&str] = &["MINIMAL", "MEDIUM", "HIGH"];
const FIVE: &[&str] = &["1:1", "3:4", "4:3", "9:16", "16:9"];
const TEN: &[&str] = &["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9"];
const FOURTEEN: &[&str] = &[
    "1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9", "1:4", "4:1", "1:8",
    "8:1",
];

const GEMINI_25_LOCATIONS: &[&str] = &[
    "global",
    "us-central1",
    "us-east1",
    "us-east4",
    "us-east5",
    "us-south1",
    "us-west1",
    "us-west4",
    "europe-central2",
    "europe-north1",
    "europe-southwest1",
    "europe-west1",
    "europe-west4",
    "europe-west8",
];

type Pixels = &'static [(&'static str, u32, u32)];

const IMAGEN_PIXELS: Pixels = &[
    ("1:1", 1024, 1024),
    ("3:4", 896, 1280),
    ("4:3", 1280, 896),
    ("9:16", 768, 1408),
    ("16:9", 1408, 768),
];

const GEMINI_25_PIXELS: Pixels = &[
    ("1:1", 1024, 1024),
    ("2:3", 832, 1248),
    ("3:2", 1248, 832),
    ("3:4", 864, 1184),
    ("4:3", 1184, 864),
    ("4:5", 896, 1152),
    ("5:4", 1152, 896),
    ("9:16", 768, 1344),
    ("16:9", 1344, 768),
    ("21:9", 1536, 672),
];

const GEMINI_3_PIXELS: Pixels = &[
    ("1:1", 1024, 1024),
    ("2:3", 848, 1264),
    ("3:2", 1264, 848),
    ("3:4", 896, 1200),
    ("4:3", 1200, 896),
    ("4:5", 928, 1152),
    ("5:4", 1152, 928),
    ("9:16", 768, 1376),
    ("16:9", 1376, 768),
    ("21:9", 1584, 672),
    ("1:4", 512, 2048),
    ("4:1", 2048, 512),
    ("1:8", 384, 3072),
    ("8:1", 3072, 384),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ratio_has_its_pixels() {
        for model in MODELS {
            for ratio in model.ratios {
                let (width, height) = pixels(model.family, ratio, "1K");
                let (across, down) = ratio.split_once(':').expect("ratios have a colon");
                let wanted = across.parse::<f64>().expect("a number")
                    / down.parse::<f64>().expect("a number");
                let off = (f64::from(width) / f64::from(height) / wanted - 1.0).abs();
                assert!(off < 0.1, "{} {ratio}: {width}x{height}", model.id);
            }
        }
    }
}
