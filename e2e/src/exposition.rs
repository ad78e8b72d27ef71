//! The text in which Prometheus reads metrics, read back: families, their types, and every sample with
//! its labels. Values of labels may hold anything, also what separates labels from each other.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// Families by name.
pub type Page = BTreeMap<String, Family>;

/// A family: what a name has a type and a text for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Family {
    /// `counter`, `gauge`, `histogram` or `summary`.
    pub kind: String,
    /// What it is said to be.
    pub help: String,
    /// Its samples in the order of the page.
    pub samples: Vec<Sample>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The family's name; for a histogram with `_bucket`, `_sum` or `_count`.
    pub name: String,
    /// Values of labels by name.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// Reads a page.
pub fn parse(page: &str) -> Result<Page> {
    let mut families = Page::new();
    for line in page.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name) = (words.next(), words.next());
            let rest = words.next().unwrap_or_default().to_owned();
            match (what, name) {
                (Some("TYPE"), Some(name)) => {
                    families.entry(name.to_owned()).or_default().kind = rest
                }
                (Some("HELP"), Some(name)) => {
                    families.entry(name.to_owned()).or_default().help = rest
                }
                _ => {}
            }
        } else if !line.is_empty() && !line.starts_with('#') {
            let sample = sample(line).with_context(|| format!("read the line {line}"))?;
            let Some(family) = family_of(&sample.name, &families) else {
                bail!("{} has no type", sample.name);
            };
            families.entry(family).or_default().samples.push(sample);
        }
    }
    Ok(families)
}

/// The family that a sample belongs to; histograms and summaries have several names for theirs.
fn family_of(name: &str, families: &Page) -> Option<String> {
    let parts = ["", "_bucket", "_sum", "_count"].into_iter();
    let mut candidates = parts.filter_map(|part| name.strip_suffix(part));
    candidates.find(|name| families.contains_key(*name)).map(str::to_owned)
}

fn sample(line: &str) -> Result<Sample> {
    let end = line.find(['{', ' ']).context("a value follows a name")?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once("=\"").context("a label has a value")?;
            let (value, after) = unquoted(quoted)?;
            if labels.insert(label.to_owned(), value).is_some() {
                bail!("the label {label} stands there twice");
            }
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    // A time may follow the value.
    let value = rest.split_whitespace().next().context("a sample has a value")?;
    // Both `+Inf` and `NaN` are read as they are written.
    let value = value.parse().with_context(|| format!("read the number {value}"))?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// The text up to the quote that ends it, and what follows that.
fn unquoted(quoted: &str) -> Result<(String, &str)> {
    let mut text = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((text, &quoted[at + 1..])),
            '\\' => text.push(match letters.next().context("an escape has a letter")?.1 {
                'n' => '\n',
                other => other,
            }),
            other => text.push(other),
        }
    }
    bail!("the value of a label has no end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_labels_may_hold_what_separates_labels() {
        let page = concat!(
            "# HELP a_total What it is, \"quoted\".\n",
            "# TYPE a_total counter\n",
            "a_total{one=\"x y\",two=\"a=\\\"b\\\",c}\\\\\\n\"} 3\n",
            "a_total{} 4 1700000000000\n",
            "a_total 5\n",
            "\n",
            "# some comment\n",
        );
        let families = parse(page).expect("a page");
        let family = &families["a_total"];
        assert_eq!(family.kind, "counter");
        assert_eq!(family.help, "What it is, \"quoted\".");
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let sample = |pairs: &[(&str, &str)], value| Sample {
            name: "a_total".to_owned(),
            labels: labels(pairs),
            value,
        };
        assert_eq!(
            family.samples,
            [
                sample(&[("one", "x y"), ("two", "a=\"b\",c}\\\n")], 3.0),
                sample(&[], 4.0),
                sample(&[], 5.0)
            ]
        );
    }

    #[test]
    fn the_parts_of_a_histogram_are_one_family() {
        let page = concat!(
            "# TYPE took_seconds histogram\n",
            "took_seconds_bucket{le=\"0.001\"} 1\n",
            "took_seconds_bucket{le=\"+Inf\"} 2\n",
            "took_seconds_sum 1e-05\n",
            "took_seconds_count 2\n",
            "# TYPE keys_count gauge\n",
            "keys_count +Inf\n",
        );
        let families = parse(page).expect("a page");
        assert_eq!(families.len(), 2);
        assert_eq!(families["took_seconds"].samples.len(), 4);
        assert_eq!(families["keys_count"].samples[0].value, f64::INFINITY);
    }

    #[test]
    fn what_is_no_page_is_refused() {
        for page in [
            "a_total 1\n",
            "# TYPE a counter\na\n",
            "# TYPE a counter\na{b=\"c} 1\n",
            "# TYPE a counter\na{b} 1\n",
            "# TYPE a counter\na{b=\"c\",b=\"d\"} 1\n",
            "# TYPE a counter\na{b=\"c\"} one\n",
        ] {
            assert!(parse(page).is_err(), "{page}");
        }
    }
}
