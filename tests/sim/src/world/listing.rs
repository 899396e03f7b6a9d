//! Lists that last: of what changes while a store lists, nothing is promised.

use std::collections::{BTreeMap, BTreeSet};

use cartwheel_bucket::{Listed, Listing};

/// What a list may show that began when the store was as in `begun`, and ended when it was as in `ended`: what was there
/// all the time, and of what came, changed or went meanwhile whatever `coin` says, each for itself.
pub fn in_between(begun: &Listing, ended: Listing, limit: usize, mut coin: impl FnMut() -> bool) -> Listing {
    if *begun == ended {
        return ended;
    }
    // Beyond the end of a page that is not the last nothing is known.
    let end_of = |page: &Listing| page.objects.last().filter(|_| page.more).map(|last| last.key.clone());
    let end = [end_of(begun), end_of(&ended)].into_iter().flatten().min();
    let by_key = |page: &Listing| -> BTreeMap<String, Listed> {
        let within = page.objects.iter().filter(|o| end.as_ref().is_none_or(|end| o.key <= *end));
        within.map(|object| (object.key.clone(), object.clone())).collect()
    };
    let (mut before, mut after) = (by_key(begun), by_key(&ended));
    let keys: BTreeSet<String> = before.keys().chain(after.keys()).cloned().collect();
    let mut objects = Vec::new();
    for key in keys {
        let (old, new) = (before.remove(&key), after.remove(&key));
        objects.extend(if old == new || coin() { new } else { old });
    }
    let more = end.is_some() || objects.len() > limit;
    objects.truncate(limit);
    // Whoever goes on from the last key needs one.
    if objects.is_empty() && more { ended } else { Listing { objects, more } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(keys: &str, more: bool) -> Listing {
        let listed = |key: char| Listed { key: key.to_string(), size: 1, modified_ms: 1 };
        Listing { objects: keys.chars().map(listed).collect(), more }
    }

    #[test]
    fn what_is_there_all_the_time_is_listed_and_of_the_rest_any_part() {
        let mut seen = BTreeSet::new();
        for coins in 0..8_u32 {
            let mut at = 0..;
            let coin = || coins >> at.next().unwrap() & 1 == 1;
            let shown = in_between(&page("abd", false), page("bcd", false), 3, coin);
            seen.insert(shown.objects.iter().map(|o| o.key.as_str()).collect::<String>());
            assert!(!shown.more || shown.objects.len() == 3);
        }
        // With all four, three are a page.
        assert_eq!(seen, ["abc", "abd", "bcd", "bd"].map(str::to_owned).into());
    }

    #[test]
    fn a_page_ends_where_the_shorter_of_both_ends() {
        let shown = in_between(&page("ab", true), page("bcd", true), 3, || true);
        assert_eq!(shown, page("b", true));
        let none = in_between(&page("a", true), page("cd", false), 3, || true);
        assert_eq!(none, page("cd", false), "a page that is not the last has something in it");
    }
}
