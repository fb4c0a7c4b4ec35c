# Runs a dump tool inside a container: sh -c THIS backupy TOKEN file|none NICE [NAME=VALUE…] TOOL [ARG…]
#   1. says "backupy:TOKEN:ready:PID:START" on stderr (START tells the process from a later one of the same number)
#   2. reads the secret from stdin, up to a line that is TOKEN, into a file that never has a name while it holds it
#   3. runs the tool with an empty environment and that file as descriptor 3
#   4. ends stdout with "backupy:TOKEN:CODE\n": whoever reads that has read everything before it
#   5. stays until it is told (TOKEN again) that this has arrived; if stdin ends before, ends the tool
# Whatever is started here is waited for here. An orphan would become a child of the container's first process, and
# where that is PostgreSQL, it takes a child that a signal ended for a crash of its own and restarts the database.
umask 077
set -C
token=$1 secret=$2 nice=$3
shift 3
fail() {
    echo "backupy:$token:$1" >&2
    exit 125
}
born() {
    IFS= read -r stat <"/proc/$1/stat" || return 1
    set -- ${stat##*) }
    echo "${20}"
}
# Whether that process is still a child of this one: numbers are used again.
mine() {
    IFS= read -r stat <"/proc/$1/stat" || return 1
    set -- ${stat##*) }
    [ "$2" = $$ ]
}
start=$(born $$ 2>/dev/null)
[ "$start" ] || fail proc
if [ "$secret" = file ]; then
    # Another program would show the secret in its arguments.
    [ "$(command -v printf)" = printf ] || fail printf
    file=
    for dir in /dev/shm /tmp /var/tmp /run; do
        if (true >"$dir/.backupy-$token") 2>/dev/null; then
            file=$dir/.backupy-$token
            break
        fi
    done
    [ "$file" ] || fail place
    exec 3<>"$file"
    rm -f "$file"
    [ ! -e "$file" ] || fail place
fi
echo "backupy:$token:ready:$$:$start" >&2
whole=
while IFS= read -r line; do
    if [ "$line" = "$token" ]; then
        whole=yes
        break
    fi
    printf '%s\n' "$line" >&3
done
line=
[ "$whole" ] || fail cut
if nice -n "$nice" env >/dev/null 2>&1; then nice="nice -n $nice"; else nice=; fi
exec 4<&0 </dev/null
$nice env -i "PATH=$PATH" LANG=C LC_ALL=C ${TZ+"TZ=$TZ"} \
    ${LD_LIBRARY_PATH+"LD_LIBRARY_PATH=$LD_LIBRARY_PATH"} "$@" 4<&- &
tool=$!
exec 3>&-
(
    exec >/dev/null 2>&1
    IFS= read -r line <&4
    [ "$line" = "$token" ] && exit
    mine "$tool" && kill -TERM "$tool"
    tries=0
    while [ "$tries" -lt 10 ] && mine "$tool"; do
        sleep 0.1 || { sleep 1; tries=10; }
        tries=$((tries + 1))
    done
    mine "$tool" && kill -KILL "$tool"
) &
watch=$!
wait "$tool"
code=$?
printf 'backupy:%s:%03d\n' "$token" "$code"
wait "$watch"
exit "$code"
