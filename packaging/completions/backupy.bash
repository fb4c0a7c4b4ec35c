# Made by scripts/generate-cli-docs from the command line's definition.
_backupy() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} path='' at options=''
    COMPREPLY=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        [[ ${COMP_WORDS[at]} == -* ]] && break
        case "$path ${COMP_WORDS[at]}" in
        " run" | " up" | " backup" | " runs" | " restore" | " verify" | " key" | " key export" | " key import" | " key rotate" | " discover" | " notify-test" | " status" | " health-check" | " decrypt" | " dump-state" | " reset" | " self-update" | " version") path+=" ${COMP_WORDS[at]}" ;;
        *) break ;;
        esac
    done
    case "$path:$before" in
    " run:--server-url") :; return ;;
    " run:--agent-key-file") :; return ;;
    " run:--state-dir") :; return ;;
    " run:--log-level") :; return ;;
    " run:--ca-file") :; return ;;
    " run:--server-pin") :; return ;;
    " run:--secrets-dir") :; return ;;
    " up:--config") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " up:--database") :; return ;;
    " up:--password") :; return ;;
    " up:--name") :; return ;;
    " up:--to") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " up:--every") :; return ;;
    " up:--cron") :; return ;;
    " up:--keep") :; return ;;
    " up:--keep-days") :; return ;;
    " up:--state-dir") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " up:--master-key") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " up:--log-level") :; return ;;
    " backup:--config") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " backup:--state-dir") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " runs:--config") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " runs:--state-dir") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " runs:--limit") :; return ;;
    " restore:--to") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " restore:--into") :; return ;;
    " restore:--password") :; return ;;
    " restore:--storage") :; return ;;
    " restore:--master-key") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " restore:--scratch") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " restore:--config") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " restore:--state-dir") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " verify:--storage") :; return ;;
    " verify:--master-key") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " verify:--scratch") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " verify:--config") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " verify:--state-dir") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " key export:--out") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " key export:--config") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " key export:--state-dir") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " key import:--in") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " key import:--config") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " key import:--state-dir") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " key rotate:--config") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " key rotate:--state-dir") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " discover:--config") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " discover:--state-dir") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " notify-test:--config") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " notify-test:--state-dir") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " status:--state-dir") :; return ;;
    " health-check:--state-dir") :; return ;;
    " decrypt:--token-file") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " decrypt:--token") :; return ;;
    " decrypt:--key-file") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " decrypt:--in") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " decrypt:--out") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " dump-state:--state-dir") :; return ;;
    " reset:--state-dir") :; return ;;
    " self-update:--sha256") :; return ;;
    " self-update:--signature") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    " self-update:--state-dir") mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    esac
    case "$path" in
    "") options="run up backup runs restore verify key discover notify-test status health-check decrypt dump-state reset self-update version --help" ;;
    " key") options="export import rotate --help" ;;
    " run") options="--server-url --agent-key-file --state-dir --log-level --allow-insecure --ca-file --server-pin --secrets-dir --help" ;;
    " up") options="--config --database --password --name --to --every --cron --keep --keep-days --state-dir --master-key --log-level --check --help" ;;
    " backup") options="--config --state-dir --no-wait --cancel --json --help" ;;
    " runs") options="--config --state-dir --json --limit --rebuild --help" ;;
    " restore") options="--to --into --password --replace --yes --storage --master-key --scratch --config --state-dir --help" ;;
    " verify") options="--json --storage --master-key --scratch --config --state-dir --help" ;;
    " key export") options="--out --confirm --config --state-dir --help" ;;
    " key import") options="--in --config --state-dir --help" ;;
    " key rotate") options="--config --state-dir --help" ;;
    " discover") options="--config --state-dir --json --help" ;;
    " notify-test") options="--config --state-dir --help" ;;
    " status") options="--state-dir --json --help" ;;
    " health-check") options="--state-dir --live --help" ;;
    " decrypt") options="--token-file --token --key-file --in --out --skip-decompress --no-verify-sha256 --force --help" ;;
    " dump-state") options="--state-dir --allow-secrets --help" ;;
    " reset") options="--state-dir --yes --help" ;;
    " self-update") options="--sha256 --signature --force --state-dir --help" ;;
    " version") options="--json --help" ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
}
complete -o filenames -F _backupy backupy
