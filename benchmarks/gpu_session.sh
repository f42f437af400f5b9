#!/usr/bin/env bash
# Measures on a GPU, within eight minutes, the most important first:
#
#     benchmarks/gpu_session.sh DIR [--rehearse] [PART...]
#
# It writes into DIR: results.jsonl (a line as soon as each figure is known), the compiled programs, session.log with
# all that was printed, and at the end summary.txt and summary.json. gpu_session.py says what the parts are; without
# names, all of them run. A part that fails, lacks a package or reaches its limit of time is named in the summary, and
# the rest goes on. Exits with 1 if a part failed. A further run into the same folder adds to it.
#
# PYTHON is the interpreter (python3). Nothing is downloaded. --rehearse uses tiny networks on the CPU.
set -uo pipefail

out=${1:?usage: $0 DIR [--rehearse] [PART...]}
shift
rehearse=()
if [ "${1:-}" = --rehearse ]; then
  rehearse=(--rehearse)
  export JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES=
  shift
fi
chosen=("$@")

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
python=${PYTHON:-python3}
mkdir -p "$out"
# support, which finds the golden values, is in tests.
export PYTHONPATH="$root:$root/tests${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

end=470         # seconds from the start, of which the summary needs a few
for_the_rest=45 # seconds that the steps leave to what comes after them
slower=1        # by which limits are multiplied
batches=(16 32 8)
if [ ${#rehearse[@]} -gt 0 ]; then
  # It is to fail for its faults alone, not because a machine is slow. Optimized programs would take longer to compile.
  slower=8 batches=(2)
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
fi

say() { echo "$(date +%T) $*" | tee -a "$out/session.log"; }

ended() { # PART STATUS REASON
  printf '{"part": "%s", "status": "%s", "seconds": %d, "reason": "%s"}\n' "$1" "$2" "$((SECONDS - began))" "$3" \
    >> "$out/results.jsonl"
  say "$1: $2: $3"
}

part() { # NAME LIMIT [SECONDS LEFT FOR OTHERS]
  local name=$1 limit=$(($2 * slower)) left=$((end * slower - SECONDS - ${3:-0})) code
  if [ ${#chosen[@]} -gt 0 ] && [[ " ${chosen[*]} " != *" $name "* ]]; then return; fi
  began=$SECONDS
  if [ "$left" -lt 10 ]; then
    ended "$name" skipped "no time was left"
    return
  fi
  limit=$((limit < left ? limit : left))
  say "$name, at most $limit s"
  timeout --kill-after=5 "$limit" "$python" "$here/gpu_session.py" "$out" "$name" "${rehearse[@]}" \
    >> "$out/session.log" 2>&1 < /dev/null
  code=$?
  case $code in
    0) say "$name: done after $((SECONDS - began)) s" ;;
    10 | 11) say "$name: $(grep "\"part\": \"$name\"" "$out/results.jsonl" | tail -n 1)" ;; # it has said why
    124 | 137) ended "$name" failed "stopped at its limit of $limit s" ;;
    *) ended "$name" failed "ended with code $code; see session.log" ;;
  esac
}

part parity 75
for batch in "${batches[@]}"; do
  part "ours-$batch" 75 $for_the_rest
  part "eager-$batch" 35 $for_the_rest
  part "compiled-$batch" 75 $for_the_rest
done
part traffic 20
part separation 60
part recordings 40
part quickstart 150
if [ ${#rehearse[@]} -eq 0 ]; then part "autotuned-${batches[0]}" 300; fi

"$python" "$here/gpu_summary.py" "$out" | tee -a "$out/session.log"
