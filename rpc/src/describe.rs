//! What the declarations say, for those who are not this program: the table that `scripts/rpc.py` reads to build its
//! command line, and the reference in Markdown. Both are written from the same [`MethodSpec`]s that the dispatcher
//! checks calls with, so they cannot say something else than it does.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::method::{Accepts, Cli, Kind, MethodSpec, Param, Prints, States};
use crate::table::Dispatcher;

impl Dispatcher {
    /// The table of `scripts/rpc.py` as JSON text: an object with the key `methods`, one method a line, sorted by name.
    pub fn client_table(&self) -> String {
        let mut specs: Vec<&MethodSpec> = self.specs().iter().collect();
        specs.sort_by_key(|spec| spec.name);
        let lines: Vec<String> = specs.iter().map(|spec| method(spec).to_string()).collect();
        format!("{{\"methods\": [\n{}\n]}}\n", lines.join(",\n"))
    }

    /// The reference of all methods in Markdown, sorted by group and name.
    pub fn markdown(&self) -> String {
        let mut specs: Vec<&MethodSpec> = self.specs().iter().collect();
        specs.sort_by_key(|spec| (spec.group, spec.name));
        let mut out = String::new();
        let mut group = "";
        for spec in specs {
            if spec.group != group {
                group = spec.group;
                line(&mut out, format_args!("## {group}\n"));
            }
            method_markdown(&mut out, spec);
        }
        out
    }
}

fn method(spec: &MethodSpec) -> Value {
    let mut entry = json!({
        "name": spec.name,
        "group": spec.group,
        "states": states(spec.states),
        "help": spec.help,
        "prints": prints(spec.prints),
    });
    entry["params"] = spec.accepts.params().iter().map(param).collect();
    entry
}

fn states(states: States) -> &'static [&'static str] {
    match states {
        States::Startup => &["startup"],
        States::Runtime => &["runtime"],
        States::Both => &["startup", "runtime"],
    }
}

fn prints(prints: Prints) -> &'static str {
    match prints {
        Prints::Nothing => "nothing",
        Prints::Json => "json",
        Prints::Bare => "bare",
        Prints::Words => "words",
        Prints::Text => "text",
    }
}

fn param(param: &Param) -> Value {
    let mut entry = Map::new();
    let mut set = |key: &str, value: Value| drop(entry.insert(key.into(), value));
    set("name", param.name.into());
    set("type", kind(param.kind).into());
    set("required", param.required.into());
    set("help", param.help.into());
    if !param.default.is_empty() {
        set("default", param.default.into());
    }
    if let Kind::Enum(words) = param.kind {
        set("choices", words.into());
    } else if let Kind::Array(Kind::Enum(words), _) = param.kind {
        set("choices", (*words).into());
    } else if !param.choices.is_empty() {
        set("choices", param.choices.into());
    }
    if !param.needs.is_empty() {
        set("needs", param.needs.into());
    }
    let (how, spelling) = match param.cli {
        Cli::Positional => ("positional", ""),
        Cli::Mask => ("mask", ""),
        Cli::Nqn => ("nqn", ""),
        Cli::Members => ("members", ""),
        Cli::Set(spelling) => ("set", spelling),
        Cli::SwitchOff(spelling) => ("switch_off", spelling),
        Cli::FlagOff(spelling) => ("flag_off", spelling),
        Cli::Words(spelling) => ("words", spelling),
        Cli::Option(spelling) => ("option", spelling),
        Cli::Flag(spelling) => ("flag", spelling),
        Cli::Switch(spelling) => ("switch", spelling),
        Cli::List(spelling) => ("list", spelling),
        Cli::BlocksFromMib { fractions: false } => ("mib", ""),
        Cli::BlocksFromMib { fractions: true } => ("mib_fraction", ""),
        Cli::Hidden => ("hidden", ""),
    };
    set("cli", how.into());
    if let (Cli::Members | Cli::Set(_), Kind::Object(members)) = (param.cli, param.kind) {
        set("members", members.iter().map(self::param).collect());
    }
    if !spelling.is_empty() {
        set("spelling", spelling.split('/').collect());
    }
    Value::Object(entry)
}

/// The type in the words of SPDK's schema.
fn kind(kind: Kind) -> String {
    match kind {
        Kind::String => "string".into(),
        Kind::Bool => "boolean".into(),
        Kind::U8 => "uint8".into(),
        Kind::U16 => "uint16".into(),
        Kind::U32 => "uint32".into(),
        Kind::U64 => "uint64".into(),
        Kind::I32 => "int32".into(),
        Kind::Uuid => "uuid".into(),
        Kind::Enum(words) => format!("enum:{}", words.join("|")),
        Kind::Object(_) => "object".into(),
        Kind::Array(of, length_max) => format!("array<{}>[max {length_max}]", self::kind(*of)),
        Kind::Any => "any".into(),
    }
}

fn method_markdown(out: &mut String, spec: &MethodSpec) {
    method_params_markdown(out, spec);
    if let Some(example) = example(spec) {
        line(out, format_args!("```json\n{example}\n```\n"));
    }
}

fn method_params_markdown(out: &mut String, spec: &MethodSpec) {
    line(out, format_args!("### {}\n", spec.name));
    line(
        out,
        format_args!("{}. State: {}.\n", spec.help.trim_end_matches('.'), states(spec.states).join(", ")),
    );
    let (code, message) = spec.bad_params;
    let message = code_span(message);
    match spec.accepts {
        Accepts::Nothing => line(out, format_args!("No params; any are answered with {code} {message}.\n")),
        Accepts::Ignored => line(out, format_args!("Params are ignored.\n")),
        Accepts::Strict(params) | Accepts::Relaxed(params) => {
            line(out, format_args!("| param | type | required | default | |\n|---|---|---|---|---|"));
            for param in params {
                let required = if param.required { "yes" } else { "no" };
                let kind = kind(param.kind).replace('|', "\\|");
                let (name, default, help) = (param.name, param.default, param.help);
                line(out, format_args!("| {name} | {kind} | {required} | {default} | {help} |"));
            }
            let unknown =
                if matches!(spec.accepts, Accepts::Relaxed(_)) { "; unknown keys are ignored" } else { "" };
            line(out, format_args!("\nBad params are answered with {code} {message}{unknown}.\n"));
        }
    }
}

/// A request that succeeds: the declared example, or none but the name where nothing is required.
fn example(spec: &MethodSpec) -> Option<String> {
    let name = spec.name;
    let request = |params: &str| format!(r#"{{"jsonrpc": "2.0", "id": 1, "method": "{name}"{params}}}"#);
    if !spec.example.is_empty() {
        return Some(request(&format!(r#", "params": {}"#, spec.example)));
    }
    spec.accepts.params().iter().all(|param| !param.required).then(|| request(""))
}

/// Text as Markdown code; some of SPDK's messages have backticks in them.
fn code_span(text: &str) -> String {
    if text.contains('`') { format!("`` {text} ``") } else { format!("`{text}`") }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a String does not fail");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Method, MethodTable, Params, Stage, State};

    fn run(_: &Arc<()>, _: Params) -> crate::Outcome {
        Ok(true.into())
    }

    static METHODS: &[Method<()>] = &[
        Method::sync("b_create", "b", run)
            .help("Create a b.")
            .params(&[
                Param::required("name", Kind::String, "its name").cli(Cli::Option("-b/--name")),
                Param::optional("mode", Kind::Enum(&["x", "y"]), "x", "how").cli(Cli::Option("--mode")),
            ])
            .bad_params(-32603, "no")
            .prints(Prints::Bare),
        Method::sync("a_list", "a", run).help("List").states(States::Both).ignores_params(),
    ];

    fn dispatcher() -> Dispatcher {
        let mut table = MethodTable::new(Arc::new(()), Stage::new(State::Runtime));
        table.register(METHODS).unwrap();
        table.finish()
    }

    #[test]
    fn client_table_holds_every_method_with_its_command_line() {
        let table: Value = serde_json::from_str(&dispatcher().client_table()).unwrap();
        let names: Vec<&Value> = table["methods"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
        assert_eq!(names, ["a_list", "b_create", "rpc_get_methods"]);
        let expected = json!({
            "name": "b_create", "group": "b", "states": ["runtime"], "help": "Create a b.", "prints": "bare",
            "params": [
                {"name": "name", "type": "string", "required": true, "help": "its name",
                 "cli": "option", "spelling": ["-b", "--name"]},
                {"name": "mode", "type": "enum:x|y", "required": false, "help": "how", "default": "x",
                 "choices": ["x", "y"], "cli": "option", "spelling": ["--mode"]},
            ],
        });
        assert_eq!(table["methods"][1], expected);
    }

    #[test]
    fn markdown_names_types_and_bad_params() {
        let text = dispatcher().markdown();
        assert!(text.contains("### b_create\n\nCreate a b. State: runtime.\n"), "{text}");
        assert!(text.contains("| mode | enum:x\\|y | no | x | how |"), "{text}");
        assert!(text.contains("Bad params are answered with -32603 `no`."), "{text}");
        assert!(
            text.contains("### a_list\n\nList. State: startup, runtime.\n\nParams are ignored."),
            "{text}"
        );
    }
}
