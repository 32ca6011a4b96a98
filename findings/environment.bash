# Sourced by every finding: `install NAME==VERSION ...` makes a temporary environment, removed at the end, whose Python is
# "$python". With uv, where there is one: it links from its cache what it has installed before.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python="$folder/environment/bin/python"
export HF_HOME="$folder/huggingface" FLWR_HOME="$folder/flwr" FLWR_TELEMETRY_ENABLED=0 RAY_USAGE_STATS_ENABLED=0

install() {
  if command -v uv >/dev/null; then
    uv venv --quiet --allow-existing --python "${PYTHON:-python3}" "$folder/environment" &&
      uv pip install --quiet --python "$python" "$@"
  else
    "${PYTHON:-python3}" -m venv "$folder/environment" && "$python" -m pip install --quiet "$@"
  fi || exit 75 # could not install
}
