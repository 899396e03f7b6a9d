//! What led to a violation, for people: of all that happened, the writes and reads of the key, what went wrong, and who
//! started, ended and died, in a page.

use std::collections::BTreeMap;

use crate::report::Violation;

/// The most lines of a timeline: those that the violation names, those about faults and processes, and those about
/// the key. What one part does not need goes to the next.
const NAMED: usize = 22;
const AROUND: usize = 19;
const OF_THE_KEY: usize = 19;
/// The longest line, in characters.
const WIDTH: usize = 170;
/// The longest value shown, in characters.
const VALUE: usize = 48;
/// The most numbers of writes that a violation is taken to name: the last ones, which are those amiss.
const WRITES: usize = 6;
/// Hosts and the like: what they write down is about faults, starts and ends, or too much.
const STAGE: [&str; 4] = ["fault", "operator", "doom", "script"];

/// A line of the trace.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    micros: u64,
    who: &'a str,
    what: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (micros, rest) = line.trim_start().split_once(' ')?;
        let (who, what) = rest.split_once(": ")?;
        Some(Self { micros: micros.parse().ok()?, who, what })
    }

    fn is_about_hosts(&self) -> bool {
        STAGE.contains(&self.who)
            || ["serves as ", "can't start"].iter().any(|start| self.what.starts_with(start))
            || self.what == "ended"
    }

    fn is_request(&self) -> bool {
        self.what.starts_with("gateway-")
    }

    /// What writer and reader of the scene of one key write down, and the reader of others about all of it.
    fn is_of_one_key(&self) -> bool {
        self.who == "writer"
            || self.what.contains(" were acknowledged at ")
            || self.what.starts_with("amiss: ")
    }
}

/// What is to be shown of a line, most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Named,
    Around,
    OfTheKey,
}

/// What led to this violation, at most 60 lines of it.
pub fn of(trace: &[u8], violation: &Violation) -> Vec<String> {
    let text = String::from_utf8_lossy(trace);
    let lines: Vec<Line<'_>> = text.lines().filter_map(Line::parse).collect();
    let chosen = choose(&parts(&lines, violation), &lines);
    let mut shown = Vec::new();
    let mut last = None;
    for at in chosen {
        let line = &lines[at];
        let said = format!("{:>9.3} s {}: {}", seconds(line.micros), line.who, shorten(line.what));
        // A fault of many hosts at once says the same for each.
        if last.as_ref() != Some(&said) {
            shown.push(cut(&said, WIDTH));
        }
        last = Some(said);
    }
    shown
}

fn seconds(micros: u64) -> f64 {
    std::time::Duration::from_micros(micros).as_secs_f64()
}

/// The words of a violation, bare.
fn words(what: &str) -> impl Iterator<Item = &str> {
    what.split_whitespace().map(|word| word.trim_matches(|c: char| "[](){},:;.\"".contains(c)))
}

/// What the path of a request for the key ends with that a violation names, as path, as namespace/key, or alone.
fn path(what: &str) -> Option<String> {
    words(what).find_map(|word| {
        let name = match word.split_once("/v1/kv/") {
            Some((_, name)) => name,
            // Clients have parts too.
            None if word.starts_with("client-") => return None,
            None if word.starts_with("cart-") => word,
            None => word
                .split_once('/')
                .filter(|(namespace, key)| !namespace.is_empty() && !key.contains('/'))
                .map(|_| word)?,
        };
        let name = name.split('?').next().unwrap_or(name);
        (!name.is_empty()).then(|| format!("/{name}?"))
    })
}

/// Which lines matter, and why. Nothing after the violation does.
fn parts(lines: &[Line<'_>], violation: &Violation) -> BTreeMap<usize, Part> {
    let numbers = words(&violation.what).filter_map(|word| word.parse::<u64>().ok());
    let mut numbers: Vec<String> = numbers.map(|number| format!("write-{number}\\")).collect();
    numbers.drain(..numbers.len().saturating_sub(WRITES));
    let path = path(&violation.what);
    let end = end(lines, violation);
    let mut parts = BTreeMap::new();
    // Who waits for the answer to which line.
    let mut asked: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, line) in lines[..end].iter().enumerate() {
        if let Some(request) = asked.remove(line.who)
            && let Some(part) = parts.get(&request).copied()
        {
            parts.insert(at, part);
        }
        if is_violation(line, violation) {
            parts.insert(at, Part::Named);
            // What was answered then.
            if let Some(answer) = lines[..at].iter().rposition(|before| before.who == line.who) {
                parts.insert(answer, Part::Named);
            }
        } else if line.is_about_hosts() {
            parts.insert(at, Part::Around);
        } else if line.is_request() && path.as_ref().is_some_and(|path| line.what.contains(path)) {
            let named = numbers.iter().any(|number| line.what.contains(number));
            parts.insert(at, if named { Part::Named } else { Part::OfTheKey });
            asked.insert(line.who, at);
        } else if path.is_none() && line.is_of_one_key() {
            parts.entry(at).or_insert(Part::OfTheKey);
        }
    }
    parts
}

/// Is this the line of the violation? Violations are written down as they are found, without the time and the name
/// that stand before them in the report.
fn is_violation(line: &Line<'_>, violation: &Violation) -> bool {
    if let Some(what) = line.what.strip_prefix("VIOLATION ") {
        return violation.what.contains(what);
    }
    line.what.strip_suffix(" STALE").is_some_and(|what| violation.what.contains(what))
}

/// The first line that is too late to matter.
fn end(lines: &[Line<'_>], violation: &Violation) -> usize {
    if let Some(at) = lines.iter().position(|line| is_violation(line, violation)) {
        return at + 1;
    }
    // The checker does not write down what it finds: it says when the read began, which may take some seconds.
    let began = violation.what.split_once(" s ").and_then(|(time, _)| time.parse::<f64>().ok());
    let Some(began) = began else { return lines.len() };
    let who = violation.what.split_once(" s ").map_or("", |(_, rest)| words(rest).next().unwrap_or_default());
    let begins = lines
        .iter()
        .position(|line| line.who == who && line.is_request() && seconds(line.micros) + 0.0005 >= began);
    let Some(begins) = begins else { return lines.len() };
    let answer = lines[begins + 1..].iter().position(|line| line.who == who);
    answer.map_or(lines.len(), |answer| begins + 1 + answer + 1)
}

/// Of each part those that are next to what is named, and to the end.
fn choose(parts: &BTreeMap<usize, Part>, lines: &[Line<'_>]) -> Vec<usize> {
    let named: Vec<usize> =
        parts.iter().filter(|(_, part)| **part == Part::Named).map(|(at, _)| *at).collect();
    let end = parts.keys().next_back().copied();
    let moments: Vec<u64> = named.iter().chain(&end).map(|at| lines[*at].micros).collect();
    let distance = |at: usize| moments.iter().map(|moment| moment.abs_diff(lines[at].micros)).min();
    let mut chosen: Vec<usize> = Vec::new();
    let mut room = 0;
    for (part, most) in [(Part::Named, NAMED), (Part::Around, AROUND), (Part::OfTheKey, OF_THE_KEY)] {
        room += most;
        let mut of_part: Vec<usize> =
            parts.iter().filter(|(_, of)| **of == part).map(|(at, _)| *at).collect();
        of_part.sort_by_key(|at| (distance(*at), std::cmp::Reverse(*at)));
        of_part.truncate(room);
        room -= of_part.len();
        chosen.extend(of_part);
    }
    chosen.sort_unstable();
    chosen
}

fn cut(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once(end).map(|(found, _)| found)
}

/// A request or an answer without what nobody follows; other lines as they are.
fn shorten(what: &str) -> String {
    request(what).or_else(|| answer(what)).unwrap_or_else(|| what.to_owned())
}

/// `gateway-1 PUT cart-3 write-12 if-match: 12 3 5`.
fn request(what: &str) -> Option<String> {
    let (start, rest) = what.split_once(" [")?;
    let (headers, body) = rest.split_once("] ").or_else(|| rest.strip_suffix(']').map(|h| (h, "")))?;
    let mut start = start.splitn(3, ' ');
    let (gateway, method, path) = (start.next()?, start.next()?, start.next()?);
    if !gateway.starts_with("gateway-") {
        return None;
    }
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut said = format!("{gateway} {method} {}", path.rsplit('/').next().unwrap_or(path));
    for option in query.split('&').filter(|option| !option.is_empty() && !option.starts_with("deadline=")) {
        said += &format!(" {option}");
    }
    if let Some(number) = between(headers, "write-", "\\") {
        said += &format!(" write-{number}");
    }
    for condition in ["if-match", "if-none-match"] {
        if headers.contains(&format!("(\"{condition}\"")) {
            said += &format!(" {condition}");
        }
    }
    if !body.is_empty() {
        said += &format!(": {}", cut(body, VALUE));
    }
    Some(said)
}

/// `204 No Content node-a.1=4 (n=3, required=2, answered=2, home=1, fallback=1)`.
fn answer(what: &str) -> Option<String> {
    let (status, rest) = what.split_once(" {")?;
    status.split(' ').next()?.parse::<u16>().ok()?;
    let (headers, body) = rest.split_once("} ").or_else(|| rest.strip_suffix('}').map(|h| (h, "")))?;
    let mut said = status.to_owned();
    if let Some(dot) = between(headers, "\"dot\": \"", "\"") {
        said += &format!(" {dot}");
    }
    if let Some(quorum) = between(headers, "\"quorum\": \"", "\"") {
        said += &format!(" ({})", quorum.split_once(", ").map_or(quorum, |(_, rest)| rest));
    }
    let values: Vec<String> = match serde_json::from_str::<serde_json::Value>(body) {
        Ok(serde_json::Value::Array(siblings)) => siblings
            .iter()
            .map(|sibling| {
                let value = sibling["value"].as_str().unwrap_or("deleted");
                format!("{} {}", sibling["dot"].as_str().unwrap_or("?"), cut(value, VALUE / 2))
            })
            .collect(),
        Ok(serde_json::Value::Object(problem)) => {
            let part = |name: &str| problem.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
            vec![part("detail"), format!("applied: {}", part("applied"))]
        }
        _ if body.is_empty() => Vec::new(),
        _ => vec![cut(body, VALUE)],
    };
    if !values.is_empty() {
        said += &format!(": {}", values.join(" | "));
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Check;

    const REQUEST: &str = r#"gateway-2 PUT /v1/kv/carts/cart-3?deadline=2000ms [("idempotency-key", "\"write-37\""), ("vector-clock", "node-a.1=3, mac=:iWT0=:"), ("if-match", "\"42\"")] 37 6 19"#;
    const ANSWER: &str = r#"204 No Content {"dot": "node-e.1=1", "etag": "\"df4f\"", "quorum": "op=write, n=3, required=2, answered=2, home=2, fallback=0, durability=disk", "server-timing": "gateway;dur=0.000"} "#;
    const READ: &str =
        r#"gateway-2 GET /v1/kv/carts/cart-3?deadline=2000ms&r=3 [("accept", "application/json")] "#;
    const SIBLINGS: &str = r#"300 Multiple Choices {"etag": "\"42\"", "quorum": "op=read, n=3, required=2, answered=2, home=1, fallback=1"} [{"dot":"node-a.1=2","etag":"\"9f\"","value":"32 6 19"},{"dot":"node-a.1=3","deleted":true}]"#;

    fn lost(what: &str) -> Violation {
        Violation { check: Check::Lost, what: what.to_owned() }
    }

    #[test]
    fn a_key_is_found_however_it_is_named() {
        for (what, key) in [
            ("1.746 s client-1/2: write 8 of wishes/cart-2 (node-e.1=1): 2 copies", Some("/wishes/cart-2?")),
            ("43.000 s reader (op=read) read [32] of cart-3: lost", Some("/cart-3?")),
            ("2 s client-0: /v1/kv/carts/hot?deadline=2000ms: no answer", Some("/carts/hot?")),
            ("9 s operator: ring 7 is not settled", None),
        ] {
            assert_eq!(path(what).as_deref(), key, "{what}");
        }
    }

    #[test]
    fn requests_and_answers_are_short() {
        assert_eq!(shorten(REQUEST), "gateway-2 PUT cart-3 write-37 if-match: 37 6 19");
        assert_eq!(
            shorten(ANSWER),
            "204 No Content node-e.1=1 (n=3, required=2, answered=2, home=2, fallback=0, durability=disk)"
        );
        assert_eq!(shorten(READ), "gateway-2 GET cart-3 r=3");
        assert_eq!(
            shorten(SIBLINGS),
            "300 Multiple Choices (n=3, required=2, answered=2, home=1, fallback=1): \
             node-a.1=2 32 6 19 | node-a.1=3 deleted"
        );
        assert_eq!(shorten("Crashed(2) begins"), "Crashed(2) begins");
    }

    #[test]
    fn the_key_the_faults_and_the_hosts_are_there_and_nothing_else() {
        let trace = [
            format!("  1000000 client-0: {REQUEST}"),
            "  1000500 node-a: get manifest/7: 12 bytes".to_owned(),
            format!("  1001000 client-1: {}", READ.replace("cart-3", "cart-4")),
            format!("  1002000 client-0: {ANSWER}"),
            format!("  1002000 client-1: {SIBLINGS}"),
            "  2000000 fault: Crashed(4) begins".to_owned(),
            "  3000000 node-e: serves as 2-abc".to_owned(),
            format!(" 43000000 reader: {READ}"),
            format!(" 43004000 reader: {SIBLINGS}"),
            format!(" 43010000 reader: {READ}"),
        ];
        let what = "43.000 s reader (op=read, n=3) read [32] of cart-3: acknowledged writes [37] are lost";
        let timeline = of(trace.join("\n").as_bytes(), &lost(what));
        let starts = [
            "    1.000 s client-0: gateway-2 PUT cart-3 write-37",
            "    1.002 s client-0: 204 No Content node-e.1=1",
            "    2.000 s fault: Crashed(4) begins",
            "    3.000 s node-e: serves as 2-abc",
            "   43.000 s reader: gateway-2 GET cart-3",
            "   43.004 s reader: 300 Multiple Choices",
        ];
        assert_eq!(timeline.len(), starts.len(), "{timeline:#?}");
        for (line, start) in timeline.iter().zip(starts) {
            assert!(line.starts_with(start), "{line} does not start with {start}");
        }
    }

    #[test]
    fn a_long_story_is_a_page_with_what_is_named_in_it() {
        let mut trace =
            vec![format!("  1000000 client-0: {REQUEST}"), format!("  1002000 client-0: {ANSWER}")];
        for at in 0..500 {
            let other = REQUEST.replace("write-37", &format!("write-{}", 100 + at));
            trace.push(format!(" {} client-1: {other}", 2_000_000 + at * 1_000));
            trace.push(format!(" {} client-1: {ANSWER}", 2_000_500 + at * 1_000));
            trace.push(format!(" {} fault: Cut({at}, 0) begins", 2_000_600 + at * 1_000));
        }
        trace.push(" 9000000 client-1: VIOLATION write 37 of cart-3 is gone".to_owned());
        trace.push(" 9000001 fault: too late to matter".to_owned());
        let timeline = of(trace.join("\n").as_bytes(), &lost("9.000 s client-1: write 37 of cart-3 is gone"));
        assert_eq!(timeline.len(), NAMED + AROUND + OF_THE_KEY, "{timeline:#?}");
        assert!(timeline[0].contains("write-37"), "{timeline:#?}");
        assert!(timeline.last().unwrap().ends_with("is gone"), "{timeline:#?}");
        assert!(timeline.iter().all(|line| line.chars().count() <= WIDTH + 1));
    }

    #[test]
    fn the_scene_of_one_key_shows_its_writer_and_its_reader() {
        let trace = "        0 script: dies\n   363000 writer: writes 1\n   437000 writer: 1: 204\n\
                        500000 node-a: list x\n   600000 reader: 200 0 (1 were acknowledged at 5): op=read STALE\n";
        let timeline = of(trace.as_bytes(), &lost("0.600000 s: 200 0 (1 were acknowledged at 5): op=read"));
        assert_eq!(timeline.len(), 4, "{timeline:#?}");
        assert!(timeline[3].contains("STALE"));
    }
}
