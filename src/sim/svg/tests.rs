//! Pictures are well formed, hold every number, and are the same every time.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

/// Checks tags, quotes and numbers of a picture; panics where they are wrong.
pub(in crate::sim) fn assert_well_formed(svg: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = svg;
    while let Some((before, after)) = rest.split_once('<') {
        assert!(!before.contains('>'), "a stray > in {before:?}");
        let bare = before.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "").replace("&quot;", "");
        assert!(!bare.contains('&'), "a stray & in {before:?}");
        let (tag, tail) = after.split_once('>').unwrap();
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else {
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
        }
        rest = tail;
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    assert_eq!(rest, "\n");
    for word in ["NaN", "inf"] {
        assert!(!svg.contains(word), "{word} in {svg}");
    }
}

fn lines() -> Lines {
    let series =
        |name: &str, points: &[(f64, f64)]| Series { name: name.to_owned(), points: points.to_vec() };
    Lines {
        title: "a < b & \"c\"".to_owned(),
        x: Axis::decades("bytes", [10.0, 1000.0].into_iter()),
        y: Axis::linear("efficiency", 0.0, 1.0, 0.5),
        series: vec![
            series("one", &[(10.0, 0.0), (1000.0, 1.0)]),
            series("two", &[(100.0, f64::NAN), (100.0, 0.5), (f64::INFINITY, 0.1)]),
            series("none", &[]),
        ],
    }
}

fn bars() -> Bars {
    Bars {
        title: "moves".to_owned(),
        y: Axis::linear("times", 0.0, 2.0, 1.0),
        groups: vec!["join".to_owned(), "leave".to_owned()],
        series: vec![("a".to_owned(), vec![1.0, 1.5]), ("b".to_owned(), vec![f64::NAN])],
    }
}

#[test]
fn pictures_are_well_formed_and_repeat() {
    let draw = || picture("lines > bars", &[&lines(), &bars()]);
    assert_well_formed(&draw());
    assert_eq!(draw(), draw());
    assert!(draw().contains("a &lt; b &amp; &quot;c&quot;"));
}

#[test]
fn points_lie_where_they_should() {
    let svg = picture("", &[&lines()]);
    // The plot is from 84 to 736 and from 44 to 304.
    assert!(svg.contains("points=\"84.0,304.0 736.0,44.0\""), "{svg}");
    assert!(svg.contains("class=\"line s1\" points=\"410.0,174.0\""), "{svg}");
    assert!(!svg.contains("class=\"line s2\""), "{svg}");
    let svg = picture("", &[&bars()]);
    assert!(svg.contains("y=\"174.0\" width=\"126.4\" height=\"130.0\""), "{svg}");
    assert_eq!(svg.matches("<rect class=\"f").count(), 2);
}

#[test]
#[should_panic(expected = "/svg")]
fn a_tag_that_is_not_closed_is_seen() {
    assert_well_formed("<svg><g></svg>\n");
}
