//! Draws a landscape for a prompt, with the prompt written on it.

use std::f32::consts::TAU;
use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, GlyphId, OutlineCurve, Point};
use epaint_default_fonts::{NOTO_EMOJI_REGULAR, UBUNTU_LIGHT};
use tiny_skia::{
    Color, FillRule, GradientStop, Paint, Path, PathBuilder, Pixmap, Point as ScreenPoint,
    RadialGradient, Rect, Shader, SpreadMode, Transform,
};

/// A finished drawing, which depends on nothing but its arguments.
pub(crate) struct Drawing(Pixmap);

impl Drawing {
    /// `label` is written in small letters below the prompt.
    pub fn new(prompt: &str, label: &str, width: u32, height: u32) -> Self {
        let mut scene = Scene::new(prompt, width, height);
        scene.sky();
        scene.sun();
        scene.hills();
        scene.panel(prompt, label);
        Self(scene.pixmap)
    }

    pub fn png(&self) -> Vec<u8> {
        self.0.encode_png().expect("an image in memory can be encoded")
    }

    pub fn jpeg(&self) -> Vec<u8> {
        let mut jpeg = Vec::new();
        let side = |pixels: u32| u16::try_from(pixels).expect("no side has 65,536 pixels");
        let (width, height) = (side(self.0.width()), side(self.0.height()));
        jpeg_encoder::Encoder::new(&mut jpeg, JPEG_QUALITY)
            .encode(self.0.data(), width, height, jpeg_encoder::ColorType::Rgba)
            .expect("an image in memory can be encoded");
        jpeg
    }
}

/// An unfinished drawing.
struct Scene {
    pixmap: Pixmap,
    width: f32,
    height: f32,
    /// The shorter side; sizes are relative to it.
    unit: f32,
    rng: Rng,
    palette: &'static Palette,
}

impl Scene {
    fn new(prompt: &str, width: u32, height: u32) -> Self {
        let pixmap = Pixmap::new(width.max(1), height.max(1))
            .expect("no side is zero, and sizes are far from 2^31");
        let (width, height) = (pixmap.width() as f32, pixmap.height() as f32);
        let mut rng = Rng::seeded_by(prompt);
        let palette = &PALETTES[rng.below(PALETTES.len())];
        Self { pixmap, width, height, unit: width.min(height), rng, palette }
    }

    /// Filled row by row, which is much faster than a gradient and looks the same.
    fn sky(&mut self) {
        for row in 0..self.pixmap.height() {
            let y = row as f32;
            let rgb = blend(
                self.palette.zenith,
                self.palette.horizon,
                (y / (0.75 * self.height)).min(1.0),
            );
            let line = Rect::from_xywh(0.0, y, self.width, 1.0).expect("a row has an area");
            let paint = paint(Shader::SolidColor(color(rgb, 1.0)));
            self.pixmap.fill_rect(line, &paint, Transform::identity(), None);
        }
        self.stars();
    }

    fn stars(&mut self) {
        let squares = (self.width * self.height / (self.unit * self.unit)).min(10.0);
        let mut stars = PathBuilder::new();
        for _ in 0..(self.palette.stars * squares) as usize {
            let (x, y) =
                (self.rng.within(0.0, self.width), self.rng.within(0.0, 0.5 * self.height));
            stars.push_circle(x, y, self.rng.within(0.0006, 0.0022) * self.unit);
        }
        self.fill(stars, color(WHITE, 0.7));
    }

    fn sun(&mut self) {
        let radius = self.rng.within(0.09, 0.15) * self.unit;
        let x = self.rng.within(0.55, 0.85) * self.width;
        let y = (self.rng.within(0.16, 0.30) * self.height).max(radius * 1.3);
        let center = ScreenPoint::from_xy(x, y);
        let stops = vec![
            GradientStop::new(0.0, color(self.palette.sun, 0.55)),
            GradientStop::new(0.35, color(self.palette.sun, 0.22)),
            GradientStop::new(1.0, color(self.palette.sun, 0.0)),
        ];
        let glow = radius * 3.0;
        let shader = RadialGradient::new(
            center,
            0.0,
            center,
            glow,
            stops,
            SpreadMode::Pad,
            Transform::identity(),
        );
        if let (Some(shader), Some(circle)) = (shader, PathBuilder::from_circle(x, y, glow)) {
            self.pixmap.fill_path(
                &circle,
                &paint(shader),
                FillRule::Winding,
                Transform::identity(),
                None,
            );
        }
        let mut disc = PathBuilder::new();
        disc.push_circle(x, y, radius);
        self.fill(disc, color(self.palette.sun, 1.0));
    }

    /// Ridges from the horizon to the viewer, the nearer ones with trees.
    fn hills(&mut self) {
        let horizon = 0.50 * self.height;
        let depth = (self.height - horizon).min(1.4 * self.unit);
        for (layer, tone) in self.palette.hills.into_iter().enumerate() {
            let nearness = layer as f32 / self.palette.hills.len() as f32;
            let base = self.height - depth * (1.0 - nearness * 0.85);
            let ridge =
                Ridge::new(&mut self.rng, base, self.unit * (0.10 - 0.05 * nearness), self.unit);
            let mut path = PathBuilder::new();
            path.move_to(0.0, self.height);
            let step = self.unit / 96.0;
            for index in 0..=(self.width / step).ceil() as u32 {
                let x = (index as f32 * step).min(self.width);
                path.line_to(x, ridge.at(x));
            }
            path.line_to(self.width, self.height);
            path.close();
            if nearness >= 0.5 {
                self.trees(&ridge, nearness, &mut path);
            }
            self.fill(path, color(tone, 1.0));
        }
    }

    fn trees(&mut self, ridge: &Ridge, nearness: f32, path: &mut PathBuilder) {
        let count = (self.rng.within(9.0, 16.0) * self.width / self.unit) as usize;
        for _ in 0..count {
            let x = self.rng.within(0.0, self.width);
            let height = self.rng.within(0.03, 0.07) * self.unit * (0.5 + nearness);
            let foot = ridge.at(x) + 0.2 * height;
            for (from, to, half) in [(0.0, 0.6, 0.26), (0.3, 0.85, 0.20), (0.6, 1.1, 0.13)] {
                path.move_to(x - half * height, foot - from * height);
                path.line_to(x, foot - to * height);
                path.line_to(x + half * height, foot - from * height);
                path.close();
            }
        }
    }

    /// The prompt and the label on a dark panel in the lower left.
    fn panel(&mut self, prompt: &str, label: &str) {
        let (margin, padding) = (0.055 * self.unit, 0.045 * self.unit);
        let room_across = (self.width - 2.0 * (margin + padding)).min(3.2 * self.unit);
        let tall_share = if self.width > 1.5 * self.height { 0.72 } else { 0.40 };
        let room_down = (tall_share * self.height).min(1.2 * self.unit) - 2.0 * padding;
        let small = (0.029 * self.unit).max(1.0);
        let prompt = Text::fitted(prompt, room_across, room_down - 2.2 * small, self.unit);
        let label = Text::cut(label, small, room_across, small * LINE_HEIGHT);

        let across = prompt.width().max(label.width()) + 2.0 * padding;
        let down = prompt.height() + 1.2 * small + label.height() + 2.0 * padding;
        let top = self.height - margin - down;
        let mut pane = PathBuilder::new();
        round_rect(&mut pane, [margin, top, across, down], 0.03 * self.unit);
        self.fill(pane, color(self.palette.pane, 0.72));
        self.write(&prompt, margin + padding, top + padding, color(WHITE, 0.96));
        let label_top = top + padding + prompt.height() + 1.2 * small;
        self.write(&label, margin + padding, label_top, color(self.palette.sun, 0.85));
    }

    fn write(&mut self, text: &Text, left: f32, top: f32, color: Color) {
        let mut path = PathBuilder::new();
        for (index, line) in text.lines.iter().enumerate() {
            let baseline = top + (index as f32 * LINE_HEIGHT + 0.95) * text.size;
            let mut x = left;
            for char in line.chars() {
                let glyph = Glyph::of(char);
                glyph.outline(&mut path, x, baseline, text.size);
                x += glyph.advance() * text.size;
            }
        }
        self.fill(path, color);
    }

    fn fill(&mut self, path: PathBuilder, color: Color) {
        let Some(path): Option<Path> = path.finish() else { return };
        let paint = paint(Shader::SolidColor(color));
        self.pixmap.fill_path(&path, &paint, FillRule::Winding, Transform::identity(), None);
    }
}

/// The outline of a hill: two waves around a height.
struct Ridge {
    base: f32,
    waves: [(f32, f32, f32); 2],
}

impl Ridge {
    fn new(rng: &mut Rng, base: f32, amplitude: f32, unit: f32) -> Self {
        let mut wave = |height: f32, shortest: f32, longest: f32| {
            (height * amplitude, TAU / (rng.within(shortest, longest) * unit), rng.within(0.0, TAU))
        };
        Self { base, waves: [wave(1.0, 0.8, 1.4), wave(0.35, 0.25, 0.45)] }
    }

    fn at(&self, x: f32) -> f32 {
        let height: f32 =
            self.waves.iter().map(|(height, rate, shift)| height * (x * rate + shift).sin()).sum();
        self.base - height
    }
}

/// Text broken into lines at one size.
struct Text {
    size: f32,
    lines: Vec<String>,
}

impl Text {
    /// As large as the space allows, within limits; cut if even the smallest size does not fit.
    fn fitted(text: &str, across: f32, down: f32, unit: f32) -> Self {
        let text = printable(text);
        let wide = (across / unit).clamp(1.0, 3.0).sqrt();
        let (mut size, smallest) = (0.066 * wide * unit, 0.034 * unit);
        while size > smallest {
            let fitted = Self { size, lines: wrap(&text, across / size) };
            if fitted.height() <= down {
                return fitted;
            }
            size *= 0.9;
        }
        Self::cut(&text, smallest, across, down)
    }

    /// At this size, with an ellipsis if something does not fit.
    fn cut(text: &str, size: f32, across: f32, down: f32) -> Self {
        let mut lines = wrap(&printable(text), across / size);
        let most = ((down / (size * LINE_HEIGHT)) as usize).max(1);
        if lines.len() > most {
            lines.truncate(most);
            let last = &mut lines[most - 1];
            while !last.is_empty() && measure(last) + Glyph::of('…').advance() > across / size {
                last.pop();
            }
            last.truncate(last.trim_end().len());
            last.push('…');
        }
        Self { size, lines }
    }

    fn width(&self) -> f32 {
        self.lines.iter().map(|line| measure(line)).fold(0.0, f32::max) * self.size
    }

    fn height(&self) -> f32 {
        self.lines.len() as f32 * LINE_HEIGHT * self.size
    }
}

/// Words with single spaces between them, without characters that have no glyph.
fn printable(text: &str) -> String {
    let unknown_emoji = |char: char| char >= '\u{1f000}' && Glyph::of(char).id == MISSING;
    let invisible = |char: char| {
        unknown_emoji(char)
            || char.is_control()
            || matches!(char, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}')
    };
    let words = text.split_whitespace().map(|word| word.replace(invisible, ""));
    let text = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    text.chars().take(MOST_CHARS).collect()
}

/// Breaks at spaces, and inside words that are wider than a line; widths are in ems.
fn wrap(text: &str, width: f32) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0.0;
    for word in text.split(' ') {
        let mut needed = measure(word);
        let space = Glyph::of(' ').advance();
        if used > 0.0 && used + space + needed > width {
            lines.push(String::new());
            used = 0.0;
        } else if used > 0.0 {
            needed += space;
            lines.last_mut().expect("never empty").push(' ');
        }
        if used + needed <= width {
            lines.last_mut().expect("never empty").push_str(word);
            used += needed;
            continue;
        }
        for char in word.chars() {
            let advance = Glyph::of(char).advance();
            if used > 0.0 && used + advance > width {
                lines.push(String::new());
                used = 0.0;
            }
            lines.last_mut().expect("never empty").push(char);
            used += advance;
        }
    }
    lines
}

/// The width of a line, in ems.
fn measure(line: &str) -> f32 {
    line.chars().map(|char| Glyph::of(char).advance()).sum()
}

/// A character in the first font that contains it.
struct Glyph {
    font: &'static FontRef<'static>,
    id: GlyphId,
}

impl Glyph {
    fn of(char: char) -> Self {
        let has = |font: &&FontRef| font.glyph_id(char) != MISSING;
        let font = FONTS.iter().find(has).unwrap_or(&FONTS[0]);
        Self { font, id: font.glyph_id(char) }
    }

    /// In ems.
    fn advance(&self) -> f32 {
        self.font.h_advance_unscaled(self.id) / self.units_per_em()
    }

    fn outline(&self, path: &mut PathBuilder, x: f32, baseline: f32, size: f32) {
        let Some(outline) = self.font.outline(self.id) else { return };
        let scale = size / self.units_per_em();
        let place = |point: Point| (x + point.x * scale, baseline - point.y * scale);
        let mut pen = None;
        for curve in &outline.curves {
            let start = match curve {
                OutlineCurve::Line(start, _)
                | OutlineCurve::Quad(start, ..)
                | OutlineCurve::Cubic(start, ..) => *start,
            };
            if pen != Some(start) {
                let (x, y) = place(start);
                path.move_to(x, y);
            }
            pen = Some(extend(path, curve, place));
        }
        path.close();
    }

    fn units_per_em(&self) -> f32 {
        self.font.units_per_em().unwrap_or(1000.0)
    }
}

/// Adds a curve; returns where it ends.
fn extend(
    path: &mut PathBuilder,
    curve: &OutlineCurve,
    place: impl Fn(Point) -> (f32, f32),
) -> Point {
    match *curve {
        OutlineCurve::Line(_, end) => {
            let (x, y) = place(end);
            path.line_to(x, y);
            end
        }
        OutlineCurve::Quad(_, control, end) => {
            let ((cx, cy), (x, y)) = (place(control), place(end));
            path.quad_to(cx, cy, x, y);
            end
        }
        OutlineCurve::Cubic(_, first, second, end) => {
            let ((ax, ay), (bx, by), (x, y)) = (place(first), place(second), place(end));
            path.cubic_to(ax, ay, bx, by, x, y);
            end
        }
    }
}

fn round_rect(path: &mut PathBuilder, [left, top, width, height]: [f32; 4], radius: f32) {
    let (right, bottom) = (left + width, top + height);
    path.move_to(left + radius, top);
    path.line_to(right - radius, top);
    path.quad_to(right, top, right, top + radius);
    path.line_to(right, bottom - radius);
    path.quad_to(right, bottom, right - radius, bottom);
    path.line_to(left + radius, bottom);
    path.quad_to(left, bottom, left, bottom - radius);
    path.line_to(left, top + radius);
    path.quad_to(left, top, left + radius, top);
    path.close();
}

fn paint(shader: Shader<'_>) -> Paint<'_> {
    Paint { shader, anti_alias: true, ..Paint::default() }
}

fn color(rgb: u32, opacity: f32) -> Color {
    let [_, red, green, blue] = rgb.to_be_bytes();
    let mut color = Color::from_rgba8(red, green, blue, 255);
    color.set_alpha(opacity);
    color
}

/// A mix of two colours; `share` is that of the second.
fn blend(from: u32, to: u32, share: f32) -> u32 {
    let mix = |a: u8, b: u8| (f32::from(a) + (f32::from(b) - f32::from(a)) * share).round() as u8;
    let ([_, r, g, b], [_, red, green, blue]) = (from.to_be_bytes(), to.to_be_bytes());
    u32::from_be_bytes([0, mix(r, red), mix(g, green), mix(b, blue)])
}

/// Pseudo-random numbers seeded by a text (FNV-1a, then SplitMix64).
struct Rng(u64);

impl Rng {
    fn seeded_by(text: &str) -> Self {
        Self(text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        }))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn within(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.next() >> 40) as f32 / (1_u64 << 24) as f32
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// The colours of one drawing, as 0xRRGGBB.
struct Palette {
    zenith: u32,
    horizon: u32,
    sun: u32,
    /// In a square image.
    stars: f32,
    /// Far to near.
    hills: [u32; 4],
    pane: u32,
}

const PALETTES: &[Palette] = &[
    // dusk
    Palette {
        zenith: 0x2b2d5b,
        horizon: 0xf29a76,
        sun: 0xffe2b0,
        stars: 50.0,
        hills: [0xb0657c, 0x7d4a71, 0x4e3562, 0x2a2348],
        pane: 0x17132b,
    },
    // morning
    Palette {
        zenith: 0x5aa9d6,
        horizon: 0xfbe8c6,
        sun: 0xfff6d8,
        stars: 0.0,
        hills: [0x9cc5b0, 0x6da58d, 0x3f7f6b, 0x22564b],
        pane: 0x10302b,
    },
    // desert
    Palette {
        zenith: 0x3f7c9c,
        horizon: 0xf6d9a4,
        sun: 0xfff0c9,
        stars: 0.0,
        hills: [0xe2a76f, 0xc77f4f, 0x98543a, 0x5f3129],
        pane: 0x2c1714,
    },
    // winter
    Palette {
        zenith: 0x6f8fc0,
        horizon: 0xf0e4ee,
        sun: 0xffffff,
        stars: 0.0,
        hills: [0xc3d0e6, 0x93a9cf, 0x5f7bab, 0x33507f],
        pane: 0x14233f,
    },
    // night
    Palette {
        zenith: 0x0b1030,
        horizon: 0x31518a,
        sun: 0xf4efd9,
        stars: 120.0,
        hills: [0x2f4d7d, 0x213b66, 0x152a4e, 0x0b1a36],
        pane: 0x040a1c,
    },
    // autumn
    Palette {
        zenith: 0x7f9fb5,
        horizon: 0xf8dfb7,
        sun: 0xfff2cf,
        stars: 0.0,
        hills: [0xd9a441, 0xc4762e, 0x94452a, 0x572a24],
        pane: 0x28130f,
    },
    // rose
    Palette {
        zenith: 0x7d6bb0,
        horizon: 0xf8c4cf,
        sun: 0xfff0e6,
        stars: 0.0,
        hills: [0xd58cae, 0xa9689d, 0x764b86, 0x45326a],
        pane: 0x20163a,
    },
];

const WHITE: u32 = 0xffffff;
const JPEG_QUALITY: u8 = 90;
const LINE_HEIGHT: f32 = 1.3;
/// More than fits into any drawing.
const MOST_CHARS: usize = 800;
const MISSING: GlyphId = GlyphId(0);

static FONTS: LazyLock<[FontRef<'static>; 2]> = LazyLock::new(|| {
    [UBUNTU_LIGHT, NOTO_EMOJI_REGULAR]
        .map(|bytes| FontRef::try_from_slice(bytes).expect("the font is part of the build"))
});

#[cfg(test)]
mod tests {
    use super::*;

    fn size(png: &[u8]) -> (u32, u32) {
        let image = Pixmap::decode_png(png).expect("a PNG");
        (image.width(), image.height())
    }

    #[test]
    fn the_same_prompt_gives_the_same_drawing() {
        assert_eq!(
            Drawing::new("a fox", "m", 96, 64).png(),
            Drawing::new("a fox", "m", 96, 64).png()
        );
        assert_ne!(
            Drawing::new("a fox", "m", 96, 64).png(),
            Drawing::new("a wolf", "m", 96, 64).png()
        );
    }

    #[test]
    fn any_prompt_and_shape_can_be_drawn() {
        let long = "endless ".repeat(5000);
        let unbroken = "w".repeat(5000);
        for prompt in ["", " ", "\0\u{1}\n", "日本語の狐", "🦊 in ❄️ snow", "👩‍👩‍👧", &long, &unbroken]
        {
            for (width, height) in [(64, 64), (512, 64), (64, 512), (1, 1), (3, 700)] {
                assert_eq!(
                    size(&Drawing::new(prompt, "model", width, height).png()),
                    (width, height),
                    "{prompt:?}"
                );
            }
        }
    }

    #[test]
    fn text_is_broken_into_lines_that_fit() {
        let text = printable("one  two\nthree \u{7}four supercalifragilisticexpialidocious");
        let lines = wrap(&text, 6.0);
        assert!(lines.iter().all(|line| measure(line) <= 6.0), "{lines:?}");
        assert_eq!(lines.concat().replace(' ', ""), text.replace(' ', ""));
    }

    #[test]
    fn text_that_does_not_fit_ends_with_an_ellipsis() {
        let text = Text::cut(&"word ".repeat(100), 10.0, 100.0, 26.0);
        assert_eq!(text.lines.len(), 2);
        assert!(text.lines[1].ends_with('…') && text.width() <= 100.0, "{:?}", text.lines);
    }

    #[test]
    fn emoji_have_a_font() {
        assert_ne!(Glyph::of('🌲').id, MISSING);
    }
}
