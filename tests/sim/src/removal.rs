//! Rules of the protocol that are taken out for a whole process, where this binary was built for that.

#[cfg(feature = "mutations")]
use cartwheel_core::mutation::{self, Rule};

/// A rule by its name.
#[cfg(feature = "mutations")]
pub fn rule(name: &str) -> Option<Rule> {
    Rule::ALL.iter().copied().find(|rule| rule.name() == name)
}

/// The name of a rule that can be taken out.
#[cfg(feature = "mutations")]
pub fn known(name: &str) -> Result<String, String> {
    let names: Vec<&str> = Rule::ALL.iter().map(|rule| rule.name()).collect();
    match rule(name) {
        Some(rule) => Ok(rule.name().to_owned()),
        None => Err(format!("no such rule; there are {}", names.join(", "))),
    }
}

/// Takes the rule out, for as long as this process lives.
#[cfg(feature = "mutations")]
pub fn remove(name: &str) {
    if let Some(rule) = rule(name) {
        mutation::remove(rule);
    }
}

/// This binary keeps to all rules.
#[cfg(not(feature = "mutations"))]
pub fn known(_: &str) -> Result<String, String> {
    Err("rules can be taken out of a binary built with `--features mutations` only".to_owned())
}

/// There is none to take out: `known` refuses all names.
#[cfg(not(feature = "mutations"))]
pub fn remove(_: &str) {}
