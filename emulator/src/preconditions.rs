//! Conditions on the generation of an object.

use std::collections::BTreeMap;

/// Conditions under which a request is carried out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Preconditions {
    generation_match: Option<i64>,
    generation_not_match: Option<i64>,
    metageneration_match: Option<i64>,
    metageneration_not_match: Option<i64>,
}

/// Which kind of condition did not hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FailedCondition {
    Match,
    NotMatch,
}

impl Preconditions {
    /// Reads the conditions from a query; the error is the parameter that is not a number.
    pub fn from_query(query: &BTreeMap<String, String>) -> Result<Self, &'static str> {
        Self::from_parameters(
            query,
            [
                "ifGenerationMatch",
                "ifGenerationNotMatch",
                "ifMetagenerationMatch",
                "ifMetagenerationNotMatch",
            ],
        )
    }

    /// Reads the conditions on the source of a copy.
    pub fn on_source(query: &BTreeMap<String, String>) -> Result<Self, &'static str> {
        Self::from_parameters(
            query,
            [
                "ifSourceGenerationMatch",
                "ifSourceGenerationNotMatch",
                "ifSourceMetagenerationMatch",
                "ifSourceMetagenerationNotMatch",
            ],
        )
    }

    fn from_parameters(
        query: &BTreeMap<String, String>,
        names: [&'static str; 4],
    ) -> Result<Self, &'static str> {
        let number = |name: &'static str| match query.get(name) {
            Some(text) => text.parse().map(Some).map_err(|_| name),
            None => Ok(None),
        };
        let [generation, not_generation, metageneration, not_metageneration] = names;
        Ok(Self {
            generation_match: number(generation)?,
            generation_not_match: number(not_generation)?,
            metageneration_match: number(metageneration)?,
            metageneration_not_match: number(not_metageneration)?,
        })
    }

    pub fn generation_match(&self) -> Option<i64> {
        self.generation_match
    }

    /// Both numbers are those of the live object, or 0 if no object exists.
    pub fn check(&self, generation: i64, metageneration: i64) -> Result<(), FailedCondition> {
        let differs = |wanted: Option<i64>, is: i64| wanted.is_some_and(|wanted| wanted != is);
        let equals = |unwanted: Option<i64>, is: i64| unwanted == Some(is);
        if differs(self.generation_match, generation)
            || differs(self.metageneration_match, metageneration)
        {
            return Err(FailedCondition::Match);
        }
        if equals(self.generation_not_match, generation)
            || equals(self.metageneration_not_match, metageneration)
        {
            return Err(FailedCondition::NotMatch);
        }
        Ok(())
    }
}
