#!/usr/bin/env bash
# Installs the contents of monitoring/ in a Google Cloud project: log-based metrics, alerts and a dashboard.
# Usage: scripts/setup-monitoring.sh --project ID [--channel NAME] [--print] [--help]
# It can run again: it updates metrics, and keeps alerts and dashboards that exist. New alerts notify --channel,
# a name that `gcloud beta monitoring channels list` shows. --print shows the commands for an empty project and runs none.
set -euo pipefail
cd "$(dirname "$0")/.."
export CLOUDSDK_CORE_DISABLE_PROMPTS=1

project=${PROJECT:-} channel='' print=''
problems=()

main() {
    local file
    read_arguments "$@"
    demand project '^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$' 'the Google Cloud project of the service'
    [ -z "$channel" ] || demand channel '^(projects/[^/]+/notificationChannels/)?[0-9]+$' 'the number of a notification channel'
    [ ${#problems[@]} -eq 0 ] || give_up "$(printf '%s\n' "${problems[@]}")"
    [ -n "$print" ] || command -v gcloud >/dev/null || give_up 'gcloud is missing: https://cloud.google.com/sdk/docs/install'

    run gcloud services enable logging.googleapis.com monitoring.googleapis.com "--project=$project"
    for file in monitoring/metrics/*.yaml; do
        metric "$file"
    done
    for file in monitoring/alerts/*.yaml; do
        alert "$file"
    done
    for file in monitoring/dashboards/*.yaml; do
        dashboard "$file"
    done
}

metric() { # FILE
    local name verb=create
    name=$(basename "$1" .yaml)
    ! has gcloud logging metrics describe "$name" "--project=$project" || verb=update
    run gcloud logging metrics "$verb" "$name" "--config-from-file=$1" "--project=$project"
}

# Alerts and dashboards that exist are kept: people change their thresholds, channels and charts.
alert() { # FILE
    is_listed "$1" gcloud alpha monitoring policies ||
        run gcloud alpha monitoring policies create "--policy-from-file=$1" \
            ${channel:+"--notification-channels=$channel"} "--project=$project"
}

dashboard() { # FILE
    is_listed "$1" gcloud monitoring dashboards ||
        run gcloud monitoring dashboards create "--config-from-file=$1" "--project=$project"
}

is_listed() { # FILE COMMAND...
    local title
    [ -z "$print" ] || return 1
    title=$(sed -n 's/^displayName: "\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' "$1")
    [ -n "$("${@:2}" list "--filter=displayName=\"$title\"" '--format=value(name)' "--project=$project")" ]
}

has() {
    [ -z "$print" ] && "$@" >/dev/null 2>&1
}

run() { # COMMAND...
    if [ -n "$print" ]; then
        printf '%q ' "$@" | sed 's/ $//'
        echo
    else
        echo "+ $*" >&2
        "$@"
    fi
}

read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help)
                sed -n '2,/^set/s/^# //p' "$0"
                exit
                ;;
            --print) print=yes ;;
            --project | --channel)
                [ $# -gt 1 ] || give_up "A value is missing after $1."
                printf -v "${1#--}" %s "$2"
                shift
                ;;
            *) give_up "$1 is not an option. $(sed -n 's/^# Usage/Usage/p' "$0")" ;;
        esac
        shift
    done
}

demand() { # NAME PATTERN MEANING
    if [ -z "${!1}" ]; then
        problems+=("--$1 is missing: $3.")
    elif [[ ! ${!1} =~ $2 ]]; then
        problems+=("--$1 cannot be ${!1}: it is $3.")
    fi
}

give_up() {
    echo "$1" >&2
    exit 1
}

main "$@"
