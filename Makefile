# `sam build` runs this: it packs the static binary as `bootstrap`, and the file of Google credentials.
.PHONY: build-IgaFunction

ARCHITECTURE ?= $(shell sed -n '/^  Architecture:/,/Default:/s/.*Default: //p' template.yaml)
MACHINE = $(if $(filter arm64,$(ARCHITECTURE)),aarch64,$(ARCHITECTURE))

build-IgaFunction:
	@test -f google-credentials.json || { \
	    echo 'google-credentials.json is missing. Create it: scripts/setup-aws.sh --project … --bucket … --account …' >&2; exit 1; }
	set -e; binary=$$(scripts/build-static.sh $(MACHINE) | tail -n 1); test -n "$$binary"; install -D "$$binary" '$(ARTIFACTS_DIR)/bootstrap'
	install -D --mode=644 google-credentials.json '$(ARTIFACTS_DIR)/google-credentials.json'
