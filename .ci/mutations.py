"""Changes that break a security property: file, fault, old text, new text."""

GOOGLE, AWS, PAGE = "scripts/setup-google.sh", "scripts/setup-aws.sh", "docs/deploy.md"

MUTATIONS = [
    (".dockerignore", "keys in the build context", "!src\n", "!src\n!.env\n"),
    (".gitignore", "a key that can be committed", "/google-credentials.json\n", ""),
    ("template.yaml", "a role that Google does not admit", "Default: iga-lambda", "Default: iga"),
    (PAGE, "a public deployment", "--no-allow-unauthenticated", "--allow-unauthenticated"),
    (PAGE, "everybody may call", '"serviceAccount:your-caller@$PROJECT.iam.gserviceaccount.com"', "allUsers"),
    (PAGE, "no check, from the internet", " --ingress=internal --no-invoker-iam-check", " --no-invoker-iam-check"),
    (PAGE, "a broad role", "--role=roles/run.invoker", "--role=roles/run.admin"),
    (GOOGLE, "all of Vertex AI", '"projects/$project/roles/igaModels"', "roles/aiplatform.user"),
    (GOOGLE, "one permission more", "igaModels aiplatform.endpoints.predict", "igaModels aiplatform.endpoints.predict,x.y.z"),
    (GOOGLE, "every bucket", 'on_bucket "$bucket" "$runtime" roles/storage.objectCreator', 'on_project "$runtime" roles/storage.objectCreator'),
    (GOOGLE, "builds own services", "roles/run.developer", "roles/run.admin"),
    (GOOGLE, "a public bucket", " --public-access-prevention", ""),
    (AWS, "every role of the account", "attribute.aws_role == '$sessions'", "true"),
    (AWS, "every member of the pool", "/attribute.aws_role/$sessions", "/*"),
    (AWS, "all objects", "roles/storage.objectCreator", "roles/storage.objectAdmin"),
    (AWS, "a public bucket", " --public-access-prevention", ""),
]
