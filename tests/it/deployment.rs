//! The deployment files and the commands of docs/deploy.md: `Config` accepts their settings, their limits
//! fit these settings, and they keep the service private and confined.

use crate::support::service::Service;
use iga::config::Config;
use iga::config::settings::SETTINGS;
use proptest::strategy::{Strategy, ValueTree};
use proptest::string::string_regex;
use proptest::test_runner::TestRunner;
use serde_norway::Value;
use std::collections::BTreeMap;
use std::process::Command;

type Variables = BTreeMap<String, String>;

/// Memory of the process besides the transfer budget, by the targets of `docs/performance.md`.
const OVERHEAD_MIB: usize = 96;

/// The limits of one instance on a platform.
#[derive(Debug)]
struct Limits {
    memory_mib: usize,
    timeout_s: u64,
    concurrency: usize,
}

impl Limits {
    #[track_caller]
    fn assert_fit(&self, config: &Config) {
        assert!(self.memory_mib >= (config.transfer_budget_bytes >> 20) + OVERHEAD_MIB, "{self:?}");
        assert!(self.timeout_s >= config.generation_deadline.as_secs() + 10, "{self:?}");
        assert!((1..=config.max_generations).contains(&self.concurrency), "{self:?}");
    }
}

/// Lambda freezes after a response, a retired first model costs a 404 at each start, and debug logs hold prompts.
#[track_caller]
fn assert_fits_production(config: &Config) {
    assert_eq!(config.answer_within, None);
    assert!(!config.model.model.retired, "{:?} is not a current model", config.model);
    assert!(!config.debug);
}

/// Reads a file by its path from the root of the repository.
fn file(name: &str) -> String {
    std::fs::read_to_string(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn yaml(text: &str) -> Value {
    let mut document: Value = serde_norway::from_str(text).unwrap();
    document.apply_merge().unwrap();
    document
}

#[track_caller]
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value:?} is not a text")).to_owned()
}

#[track_caller]
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value:?} is not a whole number"))
}

fn pairs(pairs: &[(&str, &str)]) -> Variables {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn entries(mapping: &Value) -> impl Iterator<Item = (String, &Value)> {
    mapping.as_mapping().unwrap().iter().map(|(name, value)| (text(name), value))
}

/// The config from the variables of a file and those that its platform sets.
#[track_caller]
fn config(variables: &Variables, platform: &[(&str, &str)]) -> Config {
    for name in variables.keys() {
        let known = SETTINGS.iter().any(|setting| setting.names.contains(&name.as_str()));
        assert!(known || name == "SSL_CERT_FILE", "{name} is not a setting");
    }
    let credentials = credentials_file();
    let path = credentials.path().to_str().unwrap();
    let mut variables = variables.clone();
    variables.extend(pairs(platform));
    // The file is mounted or packaged under the path that the variable names.
    variables.entry("GOOGLE_APPLICATION_CREDENTIALS".into()).and_modify(|at| *at = path.into());
    Config::from_vars(|name| variables.get(name).cloned()).unwrap_or_else(|error| panic!("{error}"))
}

fn credentials_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let user = r#"{"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}"#;
    std::fs::write(file.path(), user).unwrap();
    file
}

// ---- Cloud Run

fn service() -> Value {
    yaml(&file("service.yaml"))["spec"]["template"].clone()
}

fn service_variables() -> Variables {
    let variables = service()["spec"]["containers"][0]["env"].as_sequence().unwrap().clone();
    let found: Variables =
        variables.iter().map(|entry| (text(&entry["name"]), text(&entry["value"]))).collect();
    assert_eq!(found.len(), variables.len(), "a variable is set twice");
    found
}

/// A third of the memory stays free, because Cloud Run also counts the file system and sidecars.
#[track_caller]
fn assert_fits_cloud_run(variables: &Variables, memory: &str, timeout_s: u64, concurrency: usize) {
    for name in ["PORT", "IGA_PORT", "IGA_HOST", "GOOGLE_APPLICATION_CREDENTIALS"] {
        assert!(!variables.contains_key(name), "{name} is Cloud Run's");
    }
    let config = config(variables, &[("K_SERVICE", "iga"), ("PORT", "8080")]);
    let memory_mib = memory.strip_suffix("Mi").unwrap().parse::<usize>().unwrap() * 2 / 3;
    // The timeout of a request includes the start of an instance.
    let limits = Limits { memory_mib, timeout_s: timeout_s - 20, concurrency };
    limits.assert_fit(&config);
    assert!(timeout_s <= 3600);
    assert_fits_production(&config);
}

#[test]
fn service_yaml_fits_its_settings() {
    let spec = &service()["spec"];
    let limits = &spec["containers"][0]["resources"]["limits"];
    assert_fits_cloud_run(
        &service_variables(),
        &text(&limits["memory"]),
        number(&spec["timeoutSeconds"]),
        number(&spec["containerConcurrency"]) as usize,
    );
}

#[tokio::test]
async fn the_startup_probe_asks_the_port_and_a_path_of_the_service() {
    let container = &service()["spec"]["containers"][0];
    let probe = &container["startupProbe"]["httpGet"];
    assert_eq!(probe["port"], container["ports"][0]["containerPort"]);
    let path = text(&probe["path"]);
    // Google's front end reserves paths that end with z.
    assert!(!path.ends_with('z'));
    let service = Service::start().await;
    let response = service.http.get(format!("{}{path}", service.url)).send().await.unwrap();
    assert_eq!(response.status(), 200);
}

#[test]
fn the_deploy_command_of_the_page_matches_service_yaml() {
    let commands = page_commands("gcloud run deploy");
    assert_eq!(commands.len(), 1);
    let flags: Vec<(&str, &str)> = commands[0]
        .iter()
        .filter_map(|word| word.strip_prefix("--"))
        .map(|flag| flag.split_once('=').unwrap_or((flag, "")))
        .collect();
    // `preset` is the value that Cloud Run uses without the flag.
    let flag = |name: &str, preset: &str| {
        let found = flags.iter().find(|(flag, _)| *flag == name);
        found.map_or(preset, |(_, value)| value).to_owned()
    };
    let settings = flags.iter().filter(|(flag, _)| *flag == "set-env-vars");
    let variables: Variables = settings
        .flat_map(|(_, list)| list.split(','))
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(variables, service_variables());
    let spec = &service()["spec"];
    let container = &spec["containers"][0];
    for (name, preset, declared) in [
        ("service-account", "", &spec["serviceAccountName"]),
        (
            "build-service-account",
            "",
            &BUILD_ACCOUNT.replace("${PROJECT_ID}", "your-project").into(),
        ),
        (
            "max-instances",
            "",
            &service()["metadata"]["annotations"]["autoscaling.knative.dev/maxScale"],
        ),
        ("memory", "512Mi", &container["resources"]["limits"]["memory"]),
        ("cpu", "1", &container["resources"]["limits"]["cpu"]),
    ] {
        assert_eq!(flag(name, preset), text(declared), "--{name}");
    }
    let annotations = &service()["metadata"]["annotations"];
    let keeps_cpu = annotations["run.googleapis.com/cpu-throttling"] == "false";
    assert_eq!(flags.contains(&("no-cpu-throttling", "")), keeps_cpu);
    assert_eq!(flag("timeout", "300"), number(&spec["timeoutSeconds"]).to_string());
    assert_eq!(flag("concurrency", "80"), number(&spec["containerConcurrency"]).to_string());
    assert_eq!(flag("port", "8080"), number(&container["ports"][0]["containerPort"]).to_string());
    assert_eq!(format!("{}:latest", flag("image", "")), text(&container["image"]));
}

/// The words, as a shell splits them, of every command on the page that begins with `start`.
fn page_commands(start: &str) -> Vec<Vec<String>> {
    let program = start.split(' ').next().unwrap();
    let page = file("docs/deploy.md");
    let mut lines = page.lines();
    let mut commands = Vec::new();
    while let Some(line) = lines.by_ref().find(|line| line.starts_with(start)) {
        let mut command = line.to_owned();
        while let Some(continued) = command.strip_suffix('\\') {
            command = format!("{continued}{}", lines.next().unwrap());
        }
        let output = Command::new("/bin/sh")
            .args(["-euc", &format!("{program}() {{ printf '%s\\n' \"$@\"; }}\n{command}")])
            .env_clear()
            .envs([
                ("PROJECT", "your-project"),
                ("REGION", "us-central1"),
                ("BUCKET", "your-bucket"),
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        let words = String::from_utf8(output.stdout).unwrap();
        commands.push(words.lines().map(str::to_owned).collect());
    }
    commands
}

// ---- AWS Lambda

const PARAMETERS: &[(&str, &str)] = &[("GoogleProject", "your-project"), ("Bucket", "your-bucket")];

/// The function's environment, with these parameters in addition to the defaults.
fn template_variables(parameters: &[(&str, &str)]) -> Variables {
    let template = yaml(&file("template.yaml"));
    let given = pairs(&[PARAMETERS, parameters].concat());
    let value = |value: &Value| match value {
        Value::Tagged(tagged) if tagged.tag == "Ref" => {
            let name = text(&tagged.value);
            let parameter = &template["Parameters"][name.as_str()];
            given.get(&name).cloned().unwrap_or_else(|| text(&parameter["Default"]))
        }
        plain => text(plain),
    };
    let properties = &template["Resources"]["IgaFunction"]["Properties"];
    let variables = &properties["Environment"]["Variables"];
    entries(variables).map(|(name, at)| (name, value(at))).collect()
}

/// The variables that Lambda sets.
const LAMBDA: &[(&str, &str)] =
    &[("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001"), ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")];

#[test]
fn template_yaml_fits_its_settings() {
    let variables = template_variables(&[]);
    let config = config(&variables, LAMBDA);
    let properties = &yaml(&file("template.yaml"))["Resources"]["IgaFunction"]["Properties"];
    let limits = Limits {
        memory_mib: number(&properties["MemorySize"]) as usize,
        timeout_s: number(&properties["Timeout"]),
        concurrency: 1,
    };
    limits.assert_fit(&config);
    assert_fits_production(&config);
    assert!(config.shared_retries);
    assert_eq!(
        (config.project_id.as_str(), config.bucket.as_str()),
        ("your-project", "your-bucket")
    );
    let without_prefix = &mut variables.clone();
    without_prefix.remove("IGA_GCS_IMAGE_PREFIX").unwrap();
    assert_eq!(config.prefix, self::config(without_prefix, LAMBDA).prefix);
    // `make` puts the file beside the binary.
    assert_eq!(variables["GOOGLE_APPLICATION_CREDENTIALS"], "/var/task/google-credentials.json");
}

#[test]
fn only_the_required_parameters_lack_a_default() {
    let template = yaml(&file("template.yaml"));
    let parameters = entries(&template["Parameters"]);
    let asked = parameters.filter(|(_, parameter)| parameter["Default"].is_null());
    assert!(asked.map(|(name, _)| name).eq(PARAMETERS.iter().map(|(name, _)| *name)));
}

/// `Model` is left out, because a pattern cannot list the models.
#[test]
fn every_value_that_a_template_parameter_allows_is_a_valid_setting() {
    let template = yaml(&file("template.yaml"));
    let mut runner = TestRunner::deterministic();
    for name in ["GoogleProject", "Location", "Bucket", "Prefix"] {
        let parameter = &template["Parameters"][name];
        let pattern = text(&parameter["AllowedPattern"]);
        let inner = pattern.strip_prefix('^').and_then(|rest| rest.strip_suffix('$')).unwrap();
        let longest = parameter["MaxLength"].as_u64().unwrap_or(u64::MAX);
        let values = string_regex(inner).unwrap();
        for _ in 0..64 {
            let value = values.new_tree(&mut runner).unwrap().current();
            if value.len() as u64 <= longest {
                config(&template_variables(&[(name, &value)]), LAMBDA);
            }
        }
    }
}

// ---- Docker

/// The environment of a compose service, with these lines in `.env`.
fn compose_variables(service: &str, env_file: &Variables) -> Variables {
    let document = yaml(&file("docker-compose.yml"));
    let variables = entries(&document["services"][service]["environment"]);
    let set = variables.filter_map(|(name, value)| match value {
        Value::Null => Some((name.clone(), env_file.get(&name)?.clone())),
        value => Some((name, interpolate(&text(value), env_file))),
    });
    set.collect()
}

/// Replaces each `${NAME:-default}`, the only form in the file.
fn interpolate(text: &str, env_file: &Variables) -> String {
    let Some((before, (expression, after))) =
        text.split_once("${").and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    else {
        return text.to_owned();
    };
    let (name, preset) = expression.split_once(":-").unwrap();
    let value = env_file.get(name).filter(|value| !value.is_empty());
    let value = value.map_or(preset, String::as_str);
    format!("{before}{value}{}", interpolate(after, env_file))
}

const GOOGLE: &[(&str, &str)] = &[
    ("IGA_VERTEXAI_PROJECT_ID", "your-project"),
    ("IGA_VERTEXAI_LOCATION", "global"),
    ("GCS_BUCKET_NAME", "your-bucket"),
];

/// Settings of the machine or of the container, which `.env` does not pass on.
const NOT_PASSED_ON: &[&str] = &[
    "PORT",
    "IGA_PORT",
    "IGA_HOST",
    "STORAGE_EMULATOR_HOST",
    "IGA_VERTEXAI_ENDPOINT",
    "GCE_METADATA_HOST",
];

#[test]
fn compose_passes_every_setting_to_the_service() {
    let names = SETTINGS.iter().flat_map(|setting| setting.names).copied();
    let mut env_file: Variables =
        names.map(|name| (name.to_owned(), format!("value of {name}"))).collect();
    let passed_on = compose_variables("iga_service", &env_file);
    env_file.retain(|name, _| !NOT_PASSED_ON.contains(&name.as_str()));
    env_file.insert("PORT".to_owned(), passed_on["PORT"].clone());
    assert_eq!(passed_on, env_file);
    // A variable without a value would be an empty setting.
    let alone: Vec<_> = compose_variables("iga_service", &pairs(&[])).into_keys().collect();
    assert_eq!(alone, ["GOOGLE_APPLICATION_CREDENTIALS", "IGA_DEBUG_MODE", "PORT"]);
}

#[test]
fn compose_with_google_mounts_the_credentials_where_the_service_reads_them() {
    let document = yaml(&file("docker-compose.yml"));
    let service = &document["services"]["iga_service"];
    for file in [&[][..], &[("GOOGLE_APPLICATION_CREDENTIALS", "/elsewhere/key.json")]] {
        let env_file = pairs(&[GOOGLE, file].concat());
        let variables = compose_variables("iga_service", &env_file);
        let config = config(&variables, &[]);
        assert_eq!(config.project_id, "your-project");
        assert!(ends_with_port(&service["ports"][0], config.port));
        let memory = text(&service["mem_limit"]);
        let memory_mib: usize = memory.trim_end_matches('m').parse().unwrap();
        assert!(memory_mib >= (config.transfer_budget_bytes >> 20) + OVERHEAD_MIB, "{memory}");
        let secret = &service["secrets"][0];
        let target = interpolate(&text(&secret["target"]), &env_file);
        assert_eq!(variables["GOOGLE_APPLICATION_CREDENTIALS"], target);
        assert!(!document["secrets"][text(&secret["source"]).as_str()].is_null());
    }
}

#[test]
fn compose_with_the_emulator_uses_no_google_setting() {
    let document = yaml(&file("docker-compose.yml"));
    let services = &document["services"];
    let command = services["iga_emulator"]["command"].as_sequence().unwrap();
    let option =
        |name: &str| text(&command[command.iter().position(|word| word == name).unwrap() + 1]);
    let credentials = ("GOOGLE_APPLICATION_CREDENTIALS", "/elsewhere/key.json");
    for env_file in [&[][..], &[GOOGLE, &[credentials]].concat()] {
        let variables = compose_variables("iga_local", &pairs(env_file));
        assert!(!variables.contains_key("GOOGLE_APPLICATION_CREDENTIALS"));
        let config = config(&variables, &[]);
        let emulator = format!("127.0.0.1:{}", option("--port"));
        let url = format!("http://{emulator}");
        assert_eq!(config.project_id, "iga-local");
        assert_eq!(config.bucket, option("--bucket"));
        assert_eq!(config.storage_endpoint, url);
        assert_eq!(config.vertex_endpoint, Some(url));
        assert_eq!(config.credentials.metadata_host, Some(emulator));
        // Both containers share one network, and the emulator's publishes the port.
        assert_eq!(services["iga_local"]["network_mode"], "service:iga_emulator");
        assert!(ends_with_port(&services["iga_emulator"]["ports"][0], config.port));
    }
    let volume = format!(":{}", option("--dir"));
    assert!(text(&services["iga_emulator"]["volumes"][0]).ends_with(&volume));
}

fn ends_with_port(published: &Value, port: u16) -> bool {
    text(published).ends_with(&format!(":{port}"))
}

#[test]
fn the_image_exposes_the_default_port() {
    let port = config(&pairs(GOOGLE), &[]).port;
    assert!(file("Dockerfile").contains(&format!("\nEXPOSE {port}\n")));
}

/// Cloud Build tests with the compiler of the image, which is at least as new as the manifest requires.
#[test]
fn the_image_and_cloud_build_use_one_compiler() {
    let minor = |version: &str| version.split('.').nth(1).and_then(|part| part.parse::<u32>().ok());
    let images = |text: &str| -> Vec<u32> {
        text.split("rust:")
            .skip(1)
            .map(|rest| {
                let version = rest.split('-').next().unwrap();
                minor(version).unwrap_or_else(|| panic!("rust:{version} is not one minor version"))
            })
            .collect()
    };
    let (image, build) = (images(&file("Dockerfile")), images(&file("cloudbuild.yaml")));
    assert!(!image.is_empty() && build.len() >= 3);
    assert!(image.iter().chain(&build).all(|version| *version == image[0]), "{image:?} {build:?}");
    assert!(Some(image[0]) >= minor(env!("CARGO_PKG_RUST_VERSION")));
}

// ---- Security

/// The security properties that these files violate.
fn broken_properties(file: impl Fn(&str) -> String) -> Vec<&'static str> {
    let [service, build, template, compose] =
        ["service.yaml", "cloudbuild.yaml", "template.yaml", "docker-compose.yml"]
            .map(|name| yaml(&file(name)));
    let function = &template["Resources"]["IgaFunction"]["Properties"];
    let properties = [
        (
            "Cloud Run admits internal callers with roles/run.invoker only",
            service["metadata"]["annotations"] == yaml("run.googleapis.com/ingress: internal")
                && !file("service.yaml").contains("invoker-iam-disabled"),
        ),
        (
            "the service and builds have accounts of their own",
            service["spec"]["template"]["spec"]["serviceAccountName"] == SERVICE_ACCOUNT
                && build["serviceAccount"] == BUILD_ACCOUNT,
        ),
        (
            "a build deploys after all checks, and leaves access as it is",
            entries_without(&build["steps"], &["waitFor", "allowFailure", "allowExitCodes"])
                && !file("cloudbuild.yaml").contains("unauthenticated"),
        ),
        (
            "a signed request to the URL is the only way to the function",
            function["FunctionUrlConfig"] == yaml("AuthType: AWS_IAM")
                && function["Events"].is_null()
                && entries(&template["Resources"]).filter(|(_, at)| !only_watches(at)).count() == 3,
        ),
        (
            "the function's role can write one log",
            template["Resources"]["IgaRole"]["Properties"] == yaml(ROLE)
                && function["Role"] == yaml("!GetAtt IgaRole.Arn")
                && function["Policies"].is_null(),
        ),
        ("containers are confined", entries(&compose["services"]).all(|(_, at)| is_confined(at))),
        (
            "the images hold a program without root and without a shell",
            has_bare_images(&file("Dockerfile")),
        ),
    ];
    properties.into_iter().filter(|(_, holds)| !holds).map(|(property, _)| property).collect()
}

const SERVICE_ACCOUNT: &str = "iga@your-project.iam.gserviceaccount.com";
const BUILD_ACCOUNT: &str =
    "projects/${PROJECT_ID}/serviceAccounts/iga-build@${PROJECT_ID}.iam.gserviceaccount.com";
const ROLE: &str = "
RoleName: !Ref RoleName
AssumeRolePolicyDocument:
  Version: '2012-10-17'
  Statement:
    - {Effect: Allow, Principal: {Service: lambda.amazonaws.com}, Action: sts:AssumeRole}
Policies:
  - PolicyName: logs
    PolicyDocument:
      Version: '2012-10-17'
      Statement:
        - Effect: Allow
          Action: [logs:CreateLogStream, logs:PutLogEvents]
          Resource: !GetAtt IgaLogs.Arn
";

/// Metric filters, alarms and dashboards give access to nothing.
fn only_watches(resource: &Value) -> bool {
    let kind = resource["Type"].as_str().unwrap();
    kind == "AWS::Logs::MetricFilter" || kind.starts_with("AWS::CloudWatch::")
}

fn entries_without(list: &Value, names: &[&str]) -> bool {
    let list = list.as_sequence().unwrap();
    list.iter().all(|entry| names.iter().all(|name| entry[*name].is_null()))
}

/// A read-only root, no capabilities, not root, published to this machine only.
fn is_confined(service: &Value) -> bool {
    let ports = service["ports"].as_sequence().into_iter().flatten();
    let network = service["network_mode"].as_str().unwrap_or_default();
    let user = service["user"].as_str().unwrap_or("${IGA_USER:-65532}");
    service["read_only"] == true
        && service["cap_drop"] == yaml("[ALL]")
        && service["security_opt"] == yaml("[no-new-privileges:true]")
        && entries_without(
            &vec![service.clone()].into(),
            &["privileged", "cap_add", "devices", "pid"],
        )
        && ports.map(text).all(|port| port.starts_with("127.0.0.1:"))
        && ["", "service:iga_emulator"].contains(&network)
        && user == "${IGA_USER:-65532}"
}

/// Checks the last stage and `local`: a base without root that holds only the output of the build stages.
fn has_bare_images(dockerfile: &str) -> bool {
    let stages: Vec<&str> = dockerfile.split("\nFROM ").collect();
    let local = stages.iter().find(|stage| stage.lines().next().unwrap().ends_with(" AS local"));
    [local, stages.last()].into_iter().all(|stage| {
        let (base, steps) = stage.unwrap().split_once('\n').unwrap();
        base.starts_with("gcr.io/distroless/static-")
            && base.split(' ').next().unwrap().ends_with(":nonroot")
            && steps.lines().filter(|step| !step.is_empty()).all(|step| {
                ["COPY --from=build", "LABEL ", "EXPOSE ", "ENTRYPOINT [\"/iga"]
                    .iter()
                    .any(|allowed| step.starts_with(allowed))
            })
    })
}

#[test]
fn the_files_keep_the_service_private_and_confined() {
    assert!(broken_properties(file).is_empty(), "{:?}", broken_properties(file));
}

/// Changes of a file that violate one property each: file, old text, new text.
const EXPOSURES: &[(&str, &str, &str)] = &[
    ("service.yaml", "ingress: internal", "ingress: all"),
    (
        "service.yaml",
        "ingress: internal",
        "ingress: internal\n    run.googleapis.com/invoker-iam-disabled: 'true'",
    ),
    ("service.yaml", "serviceAccountName: iga@", "serviceAccountName: iga-build@"),
    ("cloudbuild.yaml", "serviceAccount: projects", "# serviceAccount: projects"),
    ("cloudbuild.yaml", " --quiet", " --quiet --allow-unauthenticated"),
    ("cloudbuild.yaml", "  - id: traffic\n", "  - id: traffic\n    waitFor: ['-']\n"),
    ("template.yaml", "AuthType: AWS_IAM", "AuthType: NONE"),
    ("template.yaml", "      Role: !GetAtt IgaRole.Arn\n", ""),
    ("template.yaml", "Service: lambda.amazonaws.com", "Service: ec2.amazonaws.com"),
    ("template.yaml", "[logs:CreateLogStream, logs:PutLogEvents]", "logs:*"),
    ("template.yaml", "Resource: !GetAtt IgaLogs.Arn", "Resource: '*'"),
    ("docker-compose.yml", "read_only: true", "read_only: false"),
    ("docker-compose.yml", "cap_drop: [ALL]", "cap_drop: [NET_RAW]"),
    ("docker-compose.yml", "no-new-privileges:true", "no-new-privileges:false"),
    ("docker-compose.yml", "${IGA_USER:-65532}", "${IGA_USER:-0}"),
    ("docker-compose.yml", "127.0.0.1:${IGA_PORT:-5007}", "${IGA_PORT:-5007}"),
    ("docker-compose.yml", "network_mode: service:iga_emulator", "network_mode: host"),
    (
        "Dockerfile",
        "static-debian13:nonroot\nCOPY --from=build /",
        "static-debian13\nCOPY --from=build /",
    ),
    ("Dockerfile", "\nEXPOSE", "\nUSER root\nEXPOSE"),
    ("Dockerfile", "\nEXPOSE", "\nCOPY gcp-credentials.json /\nEXPOSE"),
    ("Dockerfile", "ENTRYPOINT [\"/iga\"]", "ENTRYPOINT /iga"),
];

#[test]
fn every_exposure_is_found() {
    for (name, old, new) in EXPOSURES {
        let changed = file(name).replace(old, new);
        assert_ne!(changed, file(name), "{name} has no {old:?}");
        let read = |of: &str| if of == *name { changed.clone() } else { file(of) };
        assert_eq!(broken_properties(read).len(), 1, "{name}: {new:?}");
    }
}
