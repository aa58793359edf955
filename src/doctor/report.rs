//! The findings of the doctor; only this module prints them.

use serde::Serialize;
use std::io::Write;

/// The result of one check.
#[derive(Debug, Serialize)]
pub struct Finding {
    pub verdict: Verdict,
    pub subject: &'static str,
    pub text: String,
    /// A command that fixes the problem, or the address of a page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// The result of a check in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    Warn,
    Fail,
    /// The check did not run, because something that it needs failed.
    Skip,
}

/// How the findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// A line for each finding, and its remedy below it.
    Text,
    /// One JSON object: `healthy` and `findings`.
    Json,
}

/// All findings so far. Text is printed at once, because some checks take seconds.
pub struct Report {
    format: OutputFormat,
    findings: Vec<Finding>,
}

impl Finding {
    fn new(verdict: Verdict, subject: &'static str, text: impl AsRef<str>) -> Finding {
        Finding { verdict, subject, text: in_one_line(text.as_ref()), remedy: None }
    }

    pub fn ok(subject: &'static str, text: impl AsRef<str>) -> Finding {
        Finding::new(Verdict::Ok, subject, text)
    }

    pub fn warn(subject: &'static str, text: impl AsRef<str>) -> Finding {
        Finding::new(Verdict::Warn, subject, text)
    }

    pub fn fail(subject: &'static str, text: impl AsRef<str>) -> Finding {
        Finding::new(Verdict::Fail, subject, text)
    }

    pub fn skip(subject: &'static str, because: impl AsRef<str>) -> Finding {
        Finding::new(Verdict::Skip, subject, format!("not checked: {}", because.as_ref()))
    }

    pub fn remedy(mut self, remedy: impl Into<Option<String>>) -> Finding {
        self.remedy = remedy.into();
        self
    }

    fn lines(&self) -> String {
        let word = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
            Verdict::Skip => "skip",
        };
        let mut lines = format!("{word:<5} {:<9} {}\n", self.subject, self.text);
        if let Some(remedy) = &self.remedy {
            lines += &format!("{:16}{remedy}\n", "");
        }
        lines
    }
}

impl Report {
    pub fn new(format: OutputFormat) -> Report {
        Report { format, findings: Vec::new() }
    }

    pub fn add(&mut self, findings: impl IntoIterator<Item = Finding>) {
        for finding in findings {
            if self.format == OutputFormat::Text {
                print(&finding.lines());
            }
            self.findings.push(finding);
        }
    }

    /// Prints the findings that are not printed yet. Returns true if no check failed.
    pub fn finish(self) -> bool {
        let healthy = self.findings.iter().all(|finding| finding.verdict != Verdict::Fail);
        if self.format == OutputFormat::Json {
            let report = serde_json::json!({"healthy": healthy, "findings": self.findings});
            print(&format!("{report:#}\n"));
        }
        healthy
    }
}

/// Prints to standard output and ignores a closed pipe.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Cuts a text and replaces its line breaks and control characters: texts from upstream have them.
fn in_one_line(text: &str) -> String {
    let spaced = text.replace(crate::error::is_control, " ");
    let mut line = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.len() > MAX_LINE_BYTES {
        line.truncate(line.floor_char_boundary(MAX_LINE_BYTES));
        line.push('…');
    }
    line
}

const MAX_LINE_BYTES: usize = 700;
