//! Rewriting of topics: `factory7/{topic}`, `{rest}`, `{1}`. Pure.

use std::fmt::Write as _;

use thiserror::Error;

use crate::message::{Filter, Topic, TopicError};

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// A name in braces that nobody knows.
    #[error("the placeholder {{{name}}} is not known here; there are {{topic}}, {{rest}}, {{1}} … and {{gateway}}")]
    Unknown {
        /// What stood in the braces.
        name: String,
    },
    /// `{` without `}`.
    #[error("a brace {{ is not closed")]
    Unclosed,
    /// `{rest}` without `#` in the filter.
    #[error("{{rest}} is what # matched, but the filter has no #")]
    NoRest,
    /// `{3}` with fewer `+` in the filter.
    #[error("{{{number}}} is what + number {number} matched, but the filter has {count} of them")]
    NoPlus {
        /// The number in braces.
        number: usize,
        /// How many `+` the filter has.
        count: usize,
    },
    /// What stands outside the braces cannot be part of a topic.
    #[error("{0}")]
    Topic(#[source] TopicError),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Topic,
    Rest,
    Plus(usize),
}

/// A topic made from another: the placeholders are checked against the filter, `{gateway}` is replaced when parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicTemplate {
    text: String,
    parts: Vec<Part>,
}

impl TopicTemplate {
    /// The template that changes nothing.
    pub fn identity() -> TopicTemplate {
        TopicTemplate { text: "{topic}".to_owned(), parts: vec![Part::Topic] }
    }

    /// Reads `text`, whose placeholders must be ones that `filter` can fill.
    pub fn parse(text: &str, filter: &Filter, gateway: &str) -> Result<TopicTemplate, TemplateError> {
        let plus_count = filter.pattern().split('/').filter(|level| *level == "+").count();
        let has_rest = filter.pattern().split('/').next_back() == Some("#");
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            literal.push_str(before);
            let (name, after) = after.split_once('}').ok_or(TemplateError::Unclosed)?;
            rest = after;
            let part = match name {
                "gateway" => {
                    literal.push_str(gateway);
                    continue;
                }
                "topic" => Part::Topic,
                "rest" if has_rest => Part::Rest,
                "rest" => return Err(TemplateError::NoRest),
                _ => match name.parse::<usize>() {
                    Ok(number) if (1..=plus_count).contains(&number) => Part::Plus(number - 1),
                    Ok(number) => return Err(TemplateError::NoPlus { number, count: plus_count }),
                    Err(_) => return Err(TemplateError::Unknown { name: name.to_owned() }),
                },
            };
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(part);
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        // Every literal must be good in a topic; and a template without any part would be an empty topic.
        let sample: String = parts.iter().map(|part| if let Part::Text(text) = part { text } else { "x" }).collect();
        Topic::new(&sample).map_err(TemplateError::Topic)?;
        Ok(TopicTemplate { text: text.to_owned(), parts })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The topic that `topic` becomes; `None` when `filter` does not match it. A `/` in front of an empty `{rest}`
    /// goes with it, so that `a/#` → `b/{rest}` turns `a` into `b`.
    ///
    /// # Errors
    /// When the result is no valid topic (empty or too long).
    pub fn apply(&self, filter: &Filter, topic: &Topic) -> Option<Result<Topic, TopicError>> {
        let captures = filter.captures(topic)?;
        let mut result = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => result.push_str(text),
                Part::Topic => result.push_str(topic.as_str()),
                Part::Plus(index) => result.push_str(captures.plus.get(*index).copied().unwrap_or_default()),
                Part::Rest => match captures.rest {
                    Some(rest) if !rest.is_empty() => {
                        // Writing to a String cannot fail.
                        let _ok = write!(result, "{rest}");
                    }
                    _ => {
                        if result.ends_with('/') {
                            result.pop();
                        }
                    }
                },
            }
        }
        Some(Topic::new(&result))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(filter: &str, template: &str, topic: &str) -> String {
        let filter = Filter::new(filter).unwrap();
        let template = TopicTemplate::parse(template, &filter, "g7").unwrap();
        template.apply(&filter, &Topic::new(topic).unwrap()).unwrap().unwrap().as_str().to_owned()
    }

    #[test]
    fn placeholders_are_filled_from_the_match() {
        assert_eq!(rewrite("plant/#", "factory7/{topic}", "plant/a/b"), "factory7/plant/a/b");
        assert_eq!(rewrite("plant/#", "f/{rest}", "plant/a/b"), "f/a/b");
        assert_eq!(rewrite("plant/#", "f/{rest}", "plant"), "f");
        assert_eq!(rewrite("+/x/+", "{2}/{gateway}/{1}", "a/x/b"), "b/g7/a");
    }

    #[test]
    fn placeholders_that_the_filter_cannot_fill_are_refused() {
        let filter = Filter::new("a/+/b").unwrap();
        for bad in ["{rest}", "{2}", "{0}", "{foo}", "{topic", "a/+/{1}", ""] {
            assert!(TopicTemplate::parse(bad, &filter, "g").is_err(), "{bad}");
        }
    }
}
