#!/usr/bin/env bash
# Prepares a Google Cloud project: APIs, image repository, accounts with only the roles that they need, buckets.
# Usage: scripts/setup-google.sh [--project ID] [--region NAME] [--bucket NAME] [--prefix images/iga/] [--print] [--help]
# An option that is missing is read from PROJECT, REGION, BUCKET or IGA_GCS_IMAGE_PREFIX. It keeps what exists, so it can
# run again. --print shows the commands for an empty project and runs none.
set -euo pipefail

print='' project=${PROJECT:-} region=${REGION:-} bucket=${BUCKET:-} prefix=${IGA_GCS_IMAGE_PREFIX-images/iga/}
problems=() new=''

main() {
    read_arguments "$@"
    check_arguments
    sources=run-sources-$project-$region # `gcloud run deploy --source` uploads to it
    runtime=iga@$project.iam.gserviceaccount.com
    builder=iga-build@$project.iam.gserviceaccount.com
    [ -n "$print" ] || command -v gcloud >/dev/null || give_up 'gcloud is missing: https://cloud.google.com/sdk/docs/install'

    run gcloud services enable run.googleapis.com aiplatform.googleapis.com storage.googleapis.com \
        artifactregistry.googleapis.com cloudbuild.googleapis.com iam.googleapis.com \
        cloudresourcemanager.googleapis.com --project="$project"
    has gcloud artifacts repositories describe iga --location="$region" --project="$project" ||
        run gcloud artifacts repositories create iga --repository-format=docker --location="$region" --project="$project"

    # The service calls models, creates objects, and reads and deletes receipts and leases. Without the permission to list,
    # Cloud Storage returns 403 instead of 404 for a missing object.
    account iga 'IGA'
    role igaModels aiplatform.endpoints.predict
    role igaObjects storage.objects.delete,storage.objects.get,storage.objects.list
    bucket "$bucket"
    on_project "$runtime" "projects/$project/roles/igaModels"
    on_bucket "$bucket" "$runtime" roles/storage.objectCreator
    on_bucket "$bucket" "$runtime" "projects/$project/roles/igaObjects"
    lifecycle

    # A build reads the sources, pushes images, writes its log, and deploys the service under the service's account.
    account iga-build 'IGA, builds'
    bucket "$sources"
    on_bucket "$sources" "$builder" roles/storage.objectViewer
    on_project "$builder" roles/logging.logWriter
    on_project "$builder" roles/run.developer
    grant gcloud artifacts repositories add-iam-policy-binding iga --location="$region" --project="$project" \
        --member="serviceAccount:$builder" --role=roles/artifactregistry.writer --condition=None
    grant gcloud iam service-accounts add-iam-policy-binding "$runtime" --project="$project" \
        --member="serviceAccount:$builder" --role=roles/iam.serviceAccountUser --condition=None
}

account() { # NAME DISPLAY-NAME
    has gcloud iam service-accounts describe "$1@$project.iam.gserviceaccount.com" --project="$project" && return
    run gcloud iam service-accounts create "$1" --display-name="$2" --project="$project"
    new=yes
}

role() { # NAME PERMISSIONS
    if has gcloud iam roles describe "$1" --project="$project"; then
        run gcloud iam roles update "$1" --permissions="$2" --project="$project"
    else
        run gcloud iam roles create "$1" --title="$1" --permissions="$2" --stage=GA --project="$project"
        new=yes
    fi
}

bucket() { # NAME
    has gcloud storage buckets describe "gs://$1" ||
        run gcloud storage buckets create "gs://$1" --location="$region" --project="$project" \
            --uniform-bucket-level-access --public-access-prevention
}

on_project() { # ACCOUNT ROLE
    grant gcloud projects add-iam-policy-binding "$project" --member="serviceAccount:$1" --role="$2" --condition=None
}

on_bucket() { # BUCKET ACCOUNT ROLE
    grant gcloud storage buckets add-iam-policy-binding "gs://$1" --member="serviceAccount:$2" --role="$3" --condition=None
}

# Deletes receipts and abandoned leases after a week. The command replaces all rules, so it skips a bucket with other rules.
lifecycle() {
    local rules file=rule.json
    rules='{"rule": [{"action": {"type": "Delete"}, "condition": {"age": 7, "matchesPrefix": ["'$prefix'.iga/"]}}]}'
    if [ -n "$print" ]; then
        echo "echo '$rules' > $file"
    else
        case $(gcloud storage buckets describe "gs://$bucket" --format='value(lifecycle_config)') in
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
    run gcloud storage buckets update "gs://$bucket" --lifecycle-file="$file"
    [ -n "$print" ] || rm "$file"
}

read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help)
                sed -n '2,/^set/s/^# //p' "$0"
                exit
                ;;
            --print) print=yes ;;
            --project | --region | --bucket | --prefix)
                [ $# -gt 1 ] || give_up "A value is missing after $1."
                printf -v "${1#--}" %s "$2"
                shift
                ;;
            *) give_up "$1 is not an option. $(sed -n 's/^# Usage/Usage/p' "$0")" ;;
        esac
        shift
    done
}

check_arguments() {
    demand project '^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$' 'the Google Cloud project that pays for the images'
    demand region '^[a-z]+-[a-z]+[0-9]+$' 'the region of the service, such as us-central1'
    demand bucket '^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$' 'the Cloud Storage bucket that takes the images, without gs://'
    prefix=$(sed 's#^/*##; s#/*$##; s#.$#&/#' <<<"$prefix") # as IGA reads it: one slash at its end, or empty
    [ -z "$prefix" ] || demand prefix '^([A-Za-z0-9_-][A-Za-z0-9._-]*/)*$' 'the folder of the images in the bucket'
    [ ${#problems[@]} -eq 0 ] || give_up "$(printf '%s\n' "${problems[@]}")"
}

demand() { # NAME PATTERN MEANING
    if [ -z "${!1}" ]; then
        problems+=("--$1 is missing: $3.")
    elif [[ ! ${!1} =~ $2 ]]; then
        problems+=("--$1 cannot be ${!1}: it is $3.")
    fi
}

has() {
    [ -z "$print" ] && "$@" >/dev/null 2>&1
}

run() {
    show "$@"
    [ -n "$print" ] || "$@"
}

# Google takes some seconds to make a new account or role known everywhere.
grant() {
    local wait
    show "$@"
    [ -z "$print" ] || return 0
    for wait in ${new:+2 4 8 16}; do
        "$@" >/dev/null && return
        sleep "$wait"
    done
    "$@" >/dev/null
}

show() {
    printf '%q ' "$@" | sed 's/ $//'
    echo
}

give_up() {
    echo "$1" >&2
    exit 1
}

main "$@"
