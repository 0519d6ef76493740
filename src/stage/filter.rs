//! Who fits what a channel wants of its servers.

use std::{fmt, str::FromStr, sync::Arc};

use crate::{Error, Instance, parse::from_text};

/// Which instances a channel uses: those of a version, in a zone, with tags.
///
/// All that is asked for must fit. When nobody in the registry fits, nobody is used, unless a fallback says
/// otherwise: [another filter](Self::or), or [anybody](Self::or_any). Instances that drain do not count as
/// being there as long as anybody else fits. Whether those who fit are well makes no difference: who wants the
/// canary gets it or an error, unless it has left.
///
/// In the URL of a target it is `?filter=version:2,tier:gold`, with `&else=any`, or another filter there:
/// `version` and `zone` mean what they say, any other word is a tag's, and so is what stands behind `tag.`.
///
/// ```
/// use tonic_fleet::stage::Filter;
///
/// let canary = Filter::version("2").and_tag("tier", "gold").or(Filter::version("1"));
/// assert_eq!(canary.to_string(), "version:2,tier:gold or version:1");
/// assert!("version:".parse::<Filter>().unwrap_err().to_string().contains("no value"));
/// ```
#[derive(Clone)]
pub struct Filter {
    /// In order of preference; never empty.
    wants: Vec<Want>,
    /// Anybody will do when nobody fits.
    or_any: bool,
}

/// What all must be true of one who fits.
#[derive(Clone, Default)]
struct Want {
    is: Vec<Is>,
}

#[derive(Clone)]
enum Is {
    Version(Arc<str>),
    Zone(Arc<str>),
    Tag(Arc<str>, Arc<str>),
    True(Arc<str>, Test),
}

type Test = Arc<dyn Fn(&Instance) -> bool + Send + Sync>;

/// More fallbacks, or more of anything in one, are a mistake.
const MOST_LEVELS: usize = 8;
const MOST_WORDS: usize = 32;
const LONGEST: usize = 4096;

impl Filter {
    /// Those that run this version.
    pub fn version(version: impl Into<Arc<str>>) -> Self {
        Self::of(Is::Version(version.into()))
    }

    /// Those in this zone, and no other: to prefer it, use [`Zones`](super::Zones).
    pub fn zone(zone: impl Into<Arc<str>>) -> Self {
        Self::of(Is::Zone(zone.into()))
    }

    /// Those with this tag.
    pub fn tag(name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        Self::of(Is::Tag(name.into(), value.into()))
    }

    /// Those for whom this is true; the name is what errors and views call it.
    ///
    /// It is asked when an instance comes or changes, and must always say the same of the same. One that panics
    /// has said no.
    pub fn by<F>(name: impl Into<Arc<str>>, test: F) -> Self
    where
        F: Fn(&Instance) -> bool + Send + Sync + 'static,
    {
        Self::of(Is::True(name.into(), Arc::new(test)))
    }

    /// This version as well.
    #[must_use]
    pub fn and_version(self, version: impl Into<Arc<str>>) -> Self {
        self.and(Is::Version(version.into()))
    }

    /// In this zone as well.
    #[must_use]
    pub fn and_zone(self, zone: impl Into<Arc<str>>) -> Self {
        self.and(Is::Zone(zone.into()))
    }

    /// With this tag as well.
    #[must_use]
    pub fn and_tag(self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.and(Is::Tag(name.into(), value.into()))
    }

    /// When nobody in the registry fits, those who fit another filter, with its own fallback.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        self.wants.extend(other.wants);
        self.or_any |= other.or_any;
        self
    }

    /// When nobody in the registry fits, anybody.
    #[must_use]
    pub fn or_any(self) -> Self {
        let or_any = true;
        Self { or_any, ..self }
    }

    fn of(is: Is) -> Self {
        let wants = vec![Want { is: vec![is] }];
        let or_any = false;
        Self { wants, or_any }
    }

    fn and(mut self, is: Is) -> Self {
        // What is said after a fallback is said of the fallback.
        if let Some(want) = self.wants.last_mut() {
            want.is.push(is);
        }
        self
    }

    /// How many levels there are, the first and its fallbacks.
    pub(super) fn levels(&self) -> usize {
        self.wants.len() + usize::from(self.or_any)
    }

    /// Whether it has no fallback, so that no call may go elsewhere.
    pub(super) fn is_strict(&self) -> bool {
        self.levels() == 1
    }

    /// The levels that an instance fits, one bit each.
    pub(super) fn fits(&self, instance: &Instance) -> u16 {
        let fits = self.wants.iter().map(|want| want.fits(instance));
        let fits = fits.chain(self.or_any.then_some(true));
        fits.enumerate()
            .fold(0, |bits, (level, fits)| bits | u16::from(fits) << level)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |why: String| Err(Error::config(format!("filter `{self}`: {why}")));
        if self.wants.len() > MOST_LEVELS {
            let most = MOST_LEVELS - 1;
            let fallbacks = self.wants.len() - 1;
            return refuse(format!("{fallbacks} fallbacks: at most {most}"));
        }
        for want in &self.wants {
            if want.is.len() > MOST_WORDS {
                return refuse(format!("{} words: at most {MOST_WORDS}", want.is.len()));
            }
            if let Some(why) = want.is.iter().find_map(Is::is_wrong) {
                return refuse(why);
            }
            if let Some(why) = want.contradicts() {
                return refuse(format!("{why}: nobody could ever fit"));
            }
        }
        Ok(())
    }
}

impl Want {
    fn fits(&self, instance: &Instance) -> bool {
        self.is.iter().all(|is| is.fits(instance))
    }

    /// What cannot be true at the same time.
    fn contradicts(&self) -> Option<String> {
        let clash = |(nth, is): (usize, &Is)| {
            let after = &self.is[nth + 1..];
            let other = after.iter().find(|other| is.excludes(other))?;
            Some(format!("`{is}` and `{other}`"))
        };
        self.is.iter().enumerate().find_map(clash)
    }
}

impl Is {
    fn fits(&self, instance: &Instance) -> bool {
        match self {
            Self::Version(version) => instance.version.as_ref() == Some(version),
            Self::Zone(zone) => instance.zone.as_ref() == Some(zone),
            Self::Tag(name, value) => {
                let has = instance.tags.get(&**name);
                has.is_some_and(|has| **has == **value)
            }
            Self::True(name, test) => {
                let test = std::panic::AssertUnwindSafe(|| test(instance));
                std::panic::catch_unwind(test).unwrap_or_else(|_| {
                    tracing::error!(id = %instance.id, %name, "the filter panicked; it does not fit");
                    false
                })
            }
        }
    }

    fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Version(one), Self::Version(other)) => one != other,
            (Self::Zone(one), Self::Zone(other)) => one != other,
            (Self::Tag(one, is), Self::Tag(other, not)) => one == other && is != not,
            _ => false,
        }
    }

    fn is_wrong(&self) -> Option<String> {
        let texts = match self {
            Self::Version(version) => [version, version],
            Self::Zone(zone) => [zone, zone],
            Self::Tag(name, value) => [name, value],
            Self::True(name, _) => [name, name],
        };
        if matches!(self, Self::Tag(_, value) if value.is_empty()) {
            // A tag may be there without a value.
            return texts[0].is_empty().then(|| "a tag without a name".into());
        }
        texts.into_iter().find_map(|text| match &**text {
            "" => Some("an empty word: say which version, zone or tag".into()),
            long if long.len() > LONGEST => {
                Some(format!("a word of {} bytes: at most {LONGEST}", long.len()))
            }
            odd if odd.chars().any(char::is_control) => {
                Some(format!("{odd:?} has a control character"))
            }
            _ => None,
        })
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why: String| {
            Err(Error::config(format!(
                "filter {text:?}: {why}; write `version:2`, `zone:eu-1`, or a tag like `tier:gold`, with commas between"
            )))
        };
        if text.len() > LONGEST {
            return Err(Error::config(format!(
                "a filter of {} bytes: at most {LONGEST}",
                text.len()
            )));
        }
        let mut filter: Option<Self> = None;
        for word in text.split(',') {
            let Some((name, value)) = word.split_once(':') else {
                return refuse(format!("{word:?} has no `:`"));
            };
            if name.is_empty() || value.is_empty() {
                let missing = if name.is_empty() { "name" } else { "value" };
                return refuse(format!("{word:?} has no {missing}"));
            }
            let is = match name {
                "version" => Is::Version(value.into()),
                "zone" => Is::Zone(value.into()),
                tag => Is::Tag(tag.strip_prefix("tag.").unwrap_or(tag).into(), value.into()),
            };
            filter = Some(match filter {
                Some(filter) => filter.and(is),
                None => Self::of(is),
            });
        }
        let Some(filter) = filter else {
            return refuse("it is empty".into());
        };
        filter.check()?;
        Ok(filter)
    }
}

from_text!(Filter);

impl fmt::Display for Is {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version:{version}"),
            Self::Zone(zone) => write!(f, "zone:{zone}"),
            Self::Tag(name, value) => match &**name {
                "version" | "zone" => write!(f, "tag.{name}:{value}"),
                name if name.starts_with("tag.") => write!(f, "tag.{name}:{value}"),
                name => write!(f, "{name}:{value}"),
            },
            Self::True(name, _) => write!(f, "{name}"),
        }
    }
}

/// As in a URL, with ` or ` before each fallback.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |want: &Want| {
            want.is
                .iter()
                .map(Is::to_string)
                .collect::<Vec<_>>()
                .join(",")
        };
        let mut levels: Vec<_> = self.wants.iter().map(words).collect();
        levels.extend(self.or_any.then(|| "any".to_owned()));
        f.write_str(&levels.join(" or "))
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(version: &str, zone: &str, tier: &str) -> Instance {
        let instance = Instance::at("10.0.0.1:1").unwrap();
        instance.version(version).zone(zone).tag("tier", tier)
    }

    #[test]
    fn all_that_is_asked_for_must_fit() {
        let one = instance("2", "eu", "gold");
        for (filter, fits) in [
            (Filter::version("2"), true),
            (Filter::version("1"), false),
            (Filter::zone("eu").and_tag("tier", "gold"), true),
            (Filter::zone("eu").and_tag("tier", "iron"), false),
            (Filter::zone("us").and_version("2"), false),
            (Filter::tag("mood", "gold"), false),
            (Filter::by("even", |one| one.weight == 1), true),
            (Filter::by("broken", |_| panic!("who wrote this?")), false),
        ] {
            assert_eq!(filter.fits(&one) == 1, fits, "{filter}");
        }
    }

    #[test]
    fn each_fallback_is_a_level() {
        let filter = Filter::version("3").or(Filter::version("2")).or_any();

        assert_eq!(filter.levels(), 3);
        assert!(!filter.is_strict() && Filter::version("3").is_strict());
        assert_eq!(filter.fits(&instance("3", "", "")), 0b101);
        assert_eq!(filter.fits(&instance("2", "", "")), 0b110);
        assert_eq!(filter.fits(&instance("1", "", "")), 0b100);
    }

    #[test]
    fn filters_are_read_as_they_were_written() {
        for text in ["version:2", "zone:eu-1,tier:gold", "tag.version:2", "a:b:c"] {
            assert_eq!(text.parse::<Filter>().unwrap().to_string(), text);
        }
        assert_eq!(
            "tag.tier:gold".parse::<Filter>().unwrap().to_string(),
            "tier:gold"
        );
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "has no `:`"),
            ("gold", "has no `:`"),
            ("version:", "has no value"),
            (":gold", "has no name"),
            ("version:2,", "has no `:`"),
            ("version:2,version:3", "nobody could ever fit"),
            ("tier:a,tier:b", "`tier:a` and `tier:b`"),
            ("tier:a\nb", "control character"),
        ] {
            let error = text.parse::<Filter>().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
        let many = (0..9).fold(Filter::version("x"), |all, n| {
            all.or(Filter::version(n.to_string()))
        });
        assert!(
            many.check()
                .unwrap_err()
                .to_string()
                .contains("9 fallbacks: at most 7")
        );
        assert!(
            Filter::zone("")
                .check()
                .unwrap_err()
                .to_string()
                .contains("an empty word")
        );
    }
}
