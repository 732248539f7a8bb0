//! How far CRI v1 is served: every verb, and every field of every request, by sandboxer. docs/cri-coverage.md is made from
//! these tables; tests hold them against the protocol's descriptor and against the tests that they name.

use std::fmt::Write as _;

mod container;
mod pod;
mod requests;
mod verbs;

/// How far a verb is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    /// Served; the note says what is special.
    Served(&'static str),
    /// Answers `Unimplemented`.
    Unimplemented,
}

/// What becomes of a field that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It does what the CRI says.
    Honoured,
    /// The request fails with an error that names it.
    Refused,
    /// Nothing.
    Ignored,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Honoured => "honoured",
            Self::Refused => "refused",
            Self::Ignored => "ignored",
        }
    }
}

/// Name; state under the sandboxers `microvm` and `qemu`, which share all that is told here; state under `native`; the test
/// that shows it, "" without one; what else there is to say.
///
/// A test is `SUITE::CASE` of tests/tests, or `FILE::FUNCTION`.
type Field = (&'static str, State, State, &'static str, &'static str);

/// A message and its fields.
type Message = (&'static str, &'static [Field]);

/// The kubelet sends the sandbox's configuration once more.
const SAME_AS_RUN: &str = "RunPodSandbox said it";

fn messages() -> impl Iterator<Item = &'static Message> {
    [requests::MESSAGES, pod::MESSAGES, container::MESSAGES].into_iter().flatten()
}

/// The page docs/cri-coverage.md.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "# CRI coverage\n\nMade from `host/src/cri/coverage` by `BULKHEAD_REGENERATE=1 cargo test -p bulkhead coverage`, which also\n\
         holds it against the protocol (cri-api 0.37.2) and against the tests it names.\n",
    );
    for (service, verbs) in [("RuntimeService", verbs::RUNTIME_SERVICE), ("ImageService", verbs::IMAGE_SERVICE)] {
        let served = verbs.iter().filter(|(_, verb)| *verb != Verb::Unimplemented).count();
        let _ = write!(page, "\n## {service}: {served} of {}\n\n| verb | | |\n|---|---|---|\n", verbs.len());
        for (name, verb) in verbs {
            let (state, note) = match verb {
                Verb::Served(note) => ("served", *note),
                Verb::Unimplemented => ("answers `Unimplemented`", ""),
            };
            let _ = writeln!(page, "| {name} | {state} | {note} |");
        }
    }
    fields(&mut page);
    page
}

fn fields(page: &mut String) {
    let all: Vec<&Field> = messages().flat_map(|(_, fields)| *fields).collect();
    let tested = all.iter().filter(|(_, _, _, test, _)| !test.is_empty()).count();
    let _ = write!(
        page,
        "\n## Fields of requests: {}, of which {tested} have a test of their own\n\n\
         A test is a case of tests/tests, or a function of a file.\n",
        all.len()
    );
    for (message, fields) in messages() {
        let _ = write!(
            page,
            "\n### {message}\n\n| field | microvm | qemu | native | shown by | |\n|---|---|---|---|---|---|\n"
        );
        for (name, vm, native, test, note) in *fields {
            let (vm, native) = (vm.word(), native.word());
            let test = if test.is_empty() { String::new() } else { format!("`{}`", test.trim_end_matches("::")) };
            let _ = writeln!(page, "| {name} | {vm} | {vm} | {native} | {test} | {note} |");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use protox::prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};

    fn repository() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    fn protocol() -> DescriptorPool {
        let directory = repository().join("proto/protos");
        let set = protox::compile([directory.join("cri.proto")], [&directory]).unwrap();
        DescriptorPool::from_file_descriptor_set(set).unwrap()
    }

    /// Messages that a field holds, as values of maps too.
    fn held(field: &FieldDescriptor) -> Option<MessageDescriptor> {
        match field.kind() {
            Kind::Message(entry) if entry.is_map_entry() => held(&entry.map_entry_value_field()),
            Kind::Message(message) => Some(message),
            _ => None,
        }
    }

    #[test]
    fn every_verb_of_the_protocol_stands_in_the_table() {
        for service in protocol().services() {
            let table = match service.name() {
                "RuntimeService" => verbs::RUNTIME_SERVICE,
                "ImageService" => verbs::IMAGE_SERVICE,
                other => panic!("no table for {other}"),
            };
            let ours: Vec<_> = table.iter().map(|(verb, _)| (*verb).to_owned()).collect();
            let theirs: Vec<_> = service.methods().map(|method| method.name().to_owned()).collect();
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn every_field_of_every_request_stands_in_the_table() {
        let protocol = protocol();
        let methods = protocol.services().flat_map(|service| service.methods().collect::<Vec<_>>());
        let mut left: Vec<MessageDescriptor> = methods.map(|method| method.input()).collect();
        let (mut theirs, mut seen) = (BTreeSet::new(), BTreeSet::new());
        while let Some(message) = left.pop() {
            if seen.insert(message.full_name().to_owned()) {
                theirs.extend(message.fields().map(|field| format!("{}.{}", message.name(), field.name())));
                left.extend(message.fields().filter_map(|field| held(&field)));
            }
        }
        let listed: Vec<String> = messages()
            .flat_map(|(message, fields)| fields.iter().map(move |field| format!("{message}.{}", field.0)))
            .collect();
        let ours: BTreeSet<String> = listed.iter().cloned().collect();
        assert_eq!(ours.len(), listed.len(), "a field stands twice");
        let missing: Vec<_> = theirs.difference(&ours).collect();
        let unknown: Vec<_> = ours.difference(&theirs).collect();
        assert!(missing.is_empty() && unknown.is_empty(), "missing: {missing:?}; unknown: {unknown:?}");
    }

    #[test]
    fn every_named_test_exists() {
        for (message, fields) in messages() {
            for (field, _, _, test, _) in fields.iter().filter(|field| !field.3.is_empty()) {
                let (place, case) = test.rsplit_once("::").unwrap();
                let file = if place.contains('/') { place.to_owned() } else { format!("tests/tests/{place}.rs") };
                let text = std::fs::read_to_string(repository().join(&file));
                let text = text.unwrap_or_else(|error| panic!("{message}.{field}: {file}: {error}"));
                assert!(text.contains(&format!("fn {case}(")), "{message}.{field}: no {case} in {file}");
            }
        }
    }

    /// The dispatching files say `not_built("Verb")` for exactly the verbs that the table calls unimplemented.
    #[test]
    fn the_table_says_what_the_code_does() {
        let code = [include_str!("../runtime/mod.rs"), include_str!("../image/mod.rs")].concat();
        for (verb, coverage) in verbs::RUNTIME_SERVICE.iter().chain(verbs::IMAGE_SERVICE) {
            let refused = code.contains(&format!("not_built(\"{verb}\")"));
            assert_eq!(refused, *coverage == Verb::Unimplemented, "{verb}");
        }
    }

    #[test]
    fn the_page_is_current() {
        let path = repository().join("docs/cri-coverage.md");
        if std::env::var_os("BULKHEAD_REGENERATE").is_some() {
            std::fs::write(&path, page()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), page());
    }
}
