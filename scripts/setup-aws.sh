#!/usr/bin/env bash
# Admits one role of an AWS account to Google Cloud without a key: the role can call Vertex AI and store images in one bucket.
# Usage: scripts/setup-aws.sh --project ID --bucket NAME --account NUMBER [--role iga-lambda] [--bucket-location US]
#        [--prefix images/iga/] [--print] [--help]
# --project, --bucket and --prefix are Google's, --account and --role are AWS's; --print only shows the commands. It keeps
# what exists, so it can run again. It writes google-credentials.json, which holds no secret.
set -euo pipefail
cd "$(dirname "$0")/.."
export CLOUDSDK_CORE_DISABLE_PROMPTS=1

project='' bucket='' account='' role=iga-lambda bucket_location=US prefix=images/iga/ print=''
problems=()

main() {
    read_arguments "$@"
    check_arguments
    [ -n "$print" ] || command -v gcloud >/dev/null || give_up 'gcloud is missing: https://cloud.google.com/sdk/docs/install'
    pool=(iga-aws --location=global "--project=$project")
    provider=("$role" --workload-identity-pool=iga-aws --location=global "--project=$project")

    run gcloud services enable aiplatform.googleapis.com iam.googleapis.com storage.googleapis.com sts.googleapis.com "--project=$project"
    number_of_the_project
    unless_there "gcloud iam workload-identity-pools describe ${pool[*]}" \
        gcloud iam workload-identity-pools create "${pool[@]}" '--display-name=IGA on AWS'
    create_provider
    create_roles
    unless_there "gcloud storage buckets describe gs://$bucket" \
        gcloud storage buckets create "gs://$bucket" "--project=$project" "--location=$bucket_location" \
        --uniform-bucket-level-access --public-access-prevention
    check_bucket
    lifecycle
    bind
    run gcloud iam workload-identity-pools create-cred-config \
        "projects/$number/locations/global/workloadIdentityPools/iga-aws/providers/$role" --aws --output-file=google-credentials.json
    [ -n "$print" ] || echo 'google-credentials.json is written. Next: sam build && sam deploy --guided'
}

number_of_the_project() {
    local command=(gcloud projects describe "$project" '--format=value(projectNumber)')
    if [ -n "$print" ]; then
        # shellcheck disable=SC2016 # the shell that runs the printed commands expands it
        number='$number'
        echo "number=\$($(quoted "${command[@]}"))"
    else
        number=$("${command[@]}")
    fi
}

# Each role has its own provider, which admits only that role. An existing one is updated, because the account may differ.
create_provider() {
    local sessions="arn:aws:sts::$account:assumed-role/$role" conditions
    conditions=("--account-id=$account" "--attribute-condition=attribute.aws_role == '$sessions'")
    unless_there "gcloud iam workload-identity-pools providers describe ${provider[*]}" \
        gcloud iam workload-identity-pools providers create-aws "${provider[@]}" "${conditions[@]}"
    run gcloud iam workload-identity-pools providers update-aws "${provider[@]}" "${conditions[@]}"
    member="principalSet://iam.googleapis.com/projects/$number/locations/global/workloadIdentityPools/iga-aws/attribute.aws_role/$sessions"
}

# The same roles as in setup-google.sh. IGA reads and deletes receipts and leases; it only creates images.
create_roles() {
    create_role igaModels aiplatform.endpoints.predict
    create_role igaObjects storage.objects.delete,storage.objects.get,storage.objects.list
}

create_role() { # NAME PERMISSIONS
    unless_there "gcloud iam roles describe $1 --project=$project" \
        gcloud iam roles create "$1" "--title=$1" "--permissions=$2" --stage=GA "--project=$project"
}

# Google admits federated members only to buckets with uniform access.
check_bucket() {
    local fix=(gcloud storage buckets update "gs://$bucket" --uniform-bucket-level-access)
    if [ -n "$print" ]; then
        echo "# An existing bucket needs this too, which ends its ACLs: $(quoted "${fix[@]}")"
    elif [ "$(gcloud storage buckets describe "gs://$bucket" '--format=value(uniform_bucket_level_access)')" != True ]; then
        give_up "gs://$bucket has ACLs and admits no federated member. If the ACLs are not needed: $(quoted "${fix[@]}")"
    fi
}

# Deletes receipts and abandoned leases after a week. The command replaces all rules, so it skips a bucket with other rules.
lifecycle() {
    local rules file=rule.json
    rules='{"rule": [{"action": {"type": "Delete"}, "condition": {"age": 7, "matchesPrefix": ["'$prefix'.iga/"]}}]}'
    if [ -n "$print" ]; then
        echo "echo '$rules' > $file"
    else
        case $(gcloud storage buckets describe "gs://$bucket" '--format=value(lifecycle_config)') in
            '') ;;
            *"$prefix.iga/"*) return ;;
            *)
                echo "gs://$bucket has lifecycle rules of its own. Add this one: $rules" >&2
                return
                ;;
        esac
        file=$(mktemp)
        echo "$rules" >"$file"
    fi
    run gcloud storage buckets update "gs://$bucket" "--lifecycle-file=$file"
    [ -n "$print" ] || rm "$file"
}

bind() {
    local role_of_bucket
    run gcloud projects add-iam-policy-binding "$project" "--member=$member" "--role=projects/$project/roles/igaModels" \
        --condition=None --format=none
    for role_of_bucket in roles/storage.objectCreator "projects/$project/roles/igaObjects"; do
        run gcloud storage buckets add-iam-policy-binding "gs://$bucket" "--member=$member" "--role=$role_of_bucket" --format=none
    done
}

run() { # COMMAND...
    if [ -n "$print" ]; then
        quoted "$@"
    else
        echo "+ $(quoted "$@")" >&2
        "$@"
    fi
}

unless_there() { # DESCRIBE COMMAND...
    local describe
    if [ -n "$print" ]; then
        printf '%s >/dev/null 2>&1 ||\n    %s\n' "$1" "$(quoted "${@:2}")"
    else
        read -ra describe <<<"$1"
        "${describe[@]}" >/dev/null 2>&1 || run "${@:2}"
    fi
}

# Quoted for a shell. Between double quotes only the project's number holds a special character, its $.
quoted() {
    local word line=''
    for word in "$@"; do
        case $word in
            *[!A-Za-z0-9_./:=,@-]*) line+=" \"$word\"" ;;
            *) line+=" $word" ;;
        esac
    done
    echo "${line# }"
}

read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help)
                sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
                exit
                ;;
            --print) print=yes ;;
            --project | --bucket | --account | --role | --bucket-location | --prefix)
                [ $# -gt 1 ] || give_up "A value is missing after $1."
                local name=${1#--}
                printf -v "${name//-/_}" %s "$2"
                shift
                ;;
            *) give_up "$1 is not an option. $(sed -n 's/^# Usage/Usage/p' "$0")" ;;
        esac
        shift
    done
}

check_arguments() {
    demand project '^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$' 'the Google Cloud project that pays for the images'
    demand bucket '^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$' 'the Cloud Storage bucket that takes the images, without gs://'
    demand account '^[0-9]{12}$' 'the AWS account: aws sts get-caller-identity --query Account --output text'
    # It is also the provider's id, and Google limits the ARN of a session to 127 characters.
    demand role '^[a-z][a-z0-9-]{3,22}$' 'the role of the function, 4 to 23 lower case letters, digits and hyphens'
    prefix=$(sed 's#^/*##; s#/*$##; s#.$#&/#' <<<"$prefix") # as IGA reads it
    [ -z "$prefix" ] || demand prefix '^([A-Za-z0-9_-][A-Za-z0-9._-]*/)*$' 'the folder of the images in the bucket'
    demand bucket_location '^[A-Za-z0-9-]+$' 'the location of a bucket that must be created'
    [ ${#problems[@]} -eq 0 ] || give_up "$(printf '%s\n' "${problems[@]}")"
}

demand() { # NAME PATTERN MEANING
    if [ -z "${!1}" ]; then
        problems+=("--${1//_/-} is missing: $3.")
    elif [[ ! ${!1} =~ $2 ]]; then
        problems+=("--${1//_/-} cannot be ${!1}: it is $3.")
    fi
}

give_up() {
    echo "$1" >&2
    exit 1
}

main "$@"
