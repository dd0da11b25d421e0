#!/usr/bin/env bash
# A real, throw-away SLURM cluster on one machine.
#
#   slurm/local-cluster.sh up              start it: a login node and $NODES nodes, n1, n2, ...; exit code 4 if this
#                                          machine cannot have one
#   slurm/local-cluster.sh exec CMD...     run CMD on the login node:  ... exec sbatch slurm/train.sbatch mine.yaml
#   slurm/local-cluster.sh node-exec nK CMD...   run CMD on a node
#   slurm/local-cluster.sh crash nK        take the power of a node away
#   slurm/local-cluster.sh boot nK         and give it back
#   slurm/local-cluster.sh status          nodes and jobs; exit code 3 if it is down
#   slurm/local-cluster.sh down            end everything; its logs stay in $SLURM_CLUSTER_DIR/log, and the numbers of
#                                          jobs go on from there
#
# Every node is a set of namespaces: it has its own address, host name, processes and /tmp; all other folders are
# shared, as on a cluster with a network file system. So run folders must not lie under /tmp. Needs root and
#   apt-get install --no-install-recommends slurmctld slurmd slurm-client munge iproute2
#
# Environment, read by `up`:
#   SLURM_CLUSTER_DIR     where all its files are (default: .slurm-cluster beside the folder of this script)
#   SLURM_CLUSTER_TMP     own: nodes have their own /tmp. shared: they do not, for a checkout or Python under /tmp
#                         (default: own, unless SLURM_CLUSTER_DIR is under /tmp)
#   NODES CPUS MEMORY GPUS    what to pretend: 2 nodes of 8 CPUs, 32000 MiB and 4 GPUs (files that are no devices)
# Partitions: main, where a job that is preempted gets 8 s; hard, where it gets none; urgent, which preempts both.
set -euo pipefail
export PATH=/usr/sbin:/sbin:$PATH

SCRIPT=$(realpath "$0")
DIR=${SLURM_CLUSTER_DIR:-$(dirname "$(dirname "$SCRIPT")")/.slurm-cluster}
DIR=$(realpath -m "$DIR")
NODES=${NODES:-2} CPUS=${CPUS:-8} MEMORY=${MEMORY:-32000} GPUS=${GPUS:-4}
NETWORK=10.77.0                                      # seen only inside the cluster: head is .254, node nK is .K
FREEZER=/sys/fs/cgroup/freezer
GROUP=$FREEZER/slurm-$(cksum <<<"$DIR" | cut -d' ' -f1)      # a cgroup of our own, named after the folder

say() { echo "local-cluster: $*" >&2; }
fail() { say "$*"; exit 1; }
cannot() { say "$*"; exit 4; }
usage() { sed -n '3,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$SCRIPT"; }

# ---------------------------------------------------------------- nodes

# Asked for its namespaces, since `kill -0` also finds a process that has ended and that nobody has waited for.
alive() { [ -s "$DIR/pid/$1" ] && [ -e "/proc/$(cat "$DIR/pid/$1")/ns/net" ]; }

# spawn NAME CMD...: CMD as the only service of a new node. The process noted in pid/NAME holds the namespaces; when
# it is killed the kernel kills all processes of the node and takes its network away: nothing can be left behind.
spawn() {
  local name=$1
  ! alive "$name" || return 0
  setsid "$SCRIPT" unshare-node "$@" >>"$DIR/log/$name.console" 2>&1 </dev/null &
  echo $! >"$DIR/pid/$name"
  # It is in its own network once it has left ours, and commands can enter it once process 1 is there: until then the
  # kernel does not give its process namespace away.
  until [ -e "/proc/$!/ns/net" ] && [ "$(readlink "/proc/$!/ns/net")" != "$(readlink /proc/self/ns/net)" ] &&
    [ -e "/proc/$!/ns/pid_for_children" ]; do
    alive "$name" || fail "node $name did not start: $(tail -n 3 "$DIR/log/$name.console")"
    sleep 0.02
  done
  connect "$name"
}

# First half of a new node: its cgroup and namespaces. Entering the cgroup first makes it the root that the node sees.
unshare_node() {
  if [ "$(cat "$DIR/proctrack")" = cgroup ]; then
    mkdir -p "$GROUP/$1"
    echo $$ >"$GROUP/$1/cgroup.procs"
  fi
  exec unshare --cgroup --net --uts --mount --pid --fork --kill-child --mount-proc "$SCRIPT" init-node "$@"
}

# Second half: process 1 of the node. It sets the node up, starts its service and takes in orphaned processes.
init_node() {
  local name=$1
  shift
  hostname "$name"
  mount --bind "$DIR/hosts" /etc/hosts
  [ "$(cat "$DIR/tmp")" = shared ] || mount -t tmpfs -o mode=1777 tmpfs /tmp
  if [ "$(cat "$DIR/proctrack")" = cgroup ]; then     # seen from here, the node's own cgroup is the root
    umount "$FREEZER"
    mount -t cgroup -o freezer cgroup "$FREEZER"
  fi
  until ip -4 -o addr show scope global | grep -q inet; do sleep 0.02; done
  export SLURM_CONF=$DIR/slurm.conf
  cd /
  "$@" &
  while :; do
    sleep 1000 &
    wait $! || true
  done
}

# in_node NAME CMD...: CMD inside a running node, in the present folder.
in_node() {
  local name=$1 pid
  shift
  alive "$name" || fail "node $name is not up"
  pid=$(cat "$DIR/pid/$name")
  nsenter --target "$pid" --net --uts --mount "--pid=/proc/$pid/ns/pid_for_children" --wd="$PWD" \
    env SLURM_CONF="$DIR/slurm.conf" "$@"
}

# The bridge is inside the login node, so the machine's own network is left alone.
connect() {
  local name=$1 head node
  head=$(cat "$DIR/pid/head") node=$(cat "$DIR/pid/$name")
  nsenter --target "$node" --net ip link set lo up
  if [ "$name" = head ]; then
    nsenter --target "$head" --net ip link add bridge type bridge
    nsenter --target "$head" --net ip addr add "$NETWORK.254/24" dev bridge
    nsenter --target "$head" --net ip link set bridge up
  else
    # A node keeps its hardware address when it boots again: the others remember it for a while.
    nsenter --target "$head" --net ip link add "$name" type veth \
      peer name eth0 address "$(printf '02:00:0a:4d:00:%02x' "${name#n}")" netns "$node"
    nsenter --target "$head" --net ip link set "$name" master bridge up
    nsenter --target "$node" --net ip link set eth0 up
    nsenter --target "$node" --net ip addr add "$NETWORK.${name#n}/24" dev eth0
  fi
}

boot() { spawn "$1" slurmd -D -N "$1" -f "$DIR/slurm.conf"; }

kill_node() {
  ! alive "$1" || kill -9 "$(cat "$DIR/pid/$1")"
  while alive "$1"; do sleep 0.02; done
  rm -f "$DIR/pid/$1"
}

# ---------------------------------------------------------------- configuration

write_configuration() {
  local number
  mkdir -p "$DIR"/{log,pid,state,spool,gpu}
  chmod 755 "$DIR" "$DIR"/*
  for ((number = 0; number < GPUS; number++)); do
    mknod -m 666 "$DIR/gpu/nvidia$number" c 1 3 2>/dev/null || : >"$DIR/gpu/nvidia$number"
  done
  {
    echo "127.0.0.1 localhost"
    echo "$NETWORK.254 head"
    for ((number = 1; number <= NODES; number++)); do echo "$NETWORK.$number n$number"; done
  } >"$DIR/hosts"
  # Real clusters track a job's processes by cgroup: signals go to the task alone, and at the end everything is killed.
  # SLURM without systemd can do so where there is a freezer cgroup of version 1. Elsewhere it follows parents and
  # children, signals all of them, and loses those that called setsid: the epilog ends them.
  if mkdir -p "$GROUP" 2>/dev/null; then echo cgroup; else echo linuxproc; fi >"$DIR/proctrack"
  case $DIR in /tmp/*) echo "${SLURM_CLUSTER_TMP:-shared}" ;; *) echo "${SLURM_CLUSTER_TMP:-own}" ;; esac >"$DIR/tmp"
  printf '%s\n' CgroupAutomount=no CgroupPlugin=cgroup/v1 ConstrainCores=no ConstrainDevices=no >"$DIR/cgroup.conf"
  : >"$DIR/plugstack.conf"
  if ((GPUS > 0)); then
    echo "NodeName=n[1-$NODES] Name=gpu File=$DIR/gpu/nvidia[0-$((GPUS - 1))]"
  fi >"$DIR/gres.conf"
  write_epilog
  write_slurm_conf
}

write_epilog() {
  cat >"$DIR/epilog" <<'END'
#!/usr/bin/env bash
# No process of a job that has ended stays on the node.
[ "$(cat "$(dirname "$SLURM_CONF")/proctrack")" = linuxproc ] || exit 0
for process in /proc/[0-9]*; do
  case $(cat "$process/comm" 2>/dev/null) in slurmstepd | slurmd | epilog) continue ;; esac
  [ "${process#/proc/}" != $$ ] && grep -qsz "^SLURM_JOB_ID=$SLURM_JOB_ID\$" "$process/environ" || continue
  kill -9 "${process#/proc/}" 2>/dev/null
done
exit 0
END
  chmod 755 "$DIR/epilog"
}

# The number after that of the last job in the logs: otherwise a job's log would be appended to that of an earlier one.
next_job() {
  local last
  last=$(grep -o 'JobId=[0-9]*' "$DIR/log/slurmctld.log" 2>/dev/null | cut -d= -f2 | sort -n | tail -n 1) || true
  echo $((${last:-0} + 1))
}

# Times are shorter than SLURM's defaults, so that tests are quick: SlurmdTimeout (300 s), and
# cred_expire (120 s), which is also how long a requeued job waits before it may start again.
write_slurm_conf() {
  cat >"$DIR/slurm.conf" <<END
ClusterName=local
SlurmctldHost=head($NETWORK.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$DIR/munge.sock,cred_expire=12
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/pid/slurmctld.pid
SlurmdPidFile=$DIR/pid/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
ProctrackType=proctrack/$(cat "$DIR/proctrack")
Epilog=$DIR/epilog
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobs.log
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=30
SlurmdTimeout=10
MinJobAge=300
FirstJobId=$(next_job)
NodeName=n[1-$NODES] NodeAddr=$NETWORK.[1-$NODES] CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS \
ThreadsPerCore=1 RealMemory=$MEMORY State=UNKNOWN $( ((GPUS == 0)) || echo "Gres=gpu:$GPUS")
PartitionName=main Nodes=ALL Default=YES DefaultTime=10 PriorityTier=1 GraceTime=8
PartitionName=hard Nodes=ALL DefaultTime=10 PriorityTier=1 GraceTime=0
PartitionName=urgent Nodes=ALL DefaultTime=10 PriorityTier=10 PreemptMode=OFF
END
}

# ---------------------------------------------------------------- the whole

check_machine() {
  local missing=() program
  [ "$(id -u)" = 0 ] || cannot "needs root, to make nodes out of namespaces"
  for program in slurmctld slurmd munged:munge sinfo:slurm-client ip:iproute2; do
    command -v "${program%:*}" >/dev/null || missing+=("${program#*:}")
  done
  ((${#missing[@]} == 0)) || cannot "missing: apt-get install --no-install-recommends ${missing[*]}"
  unshare --cgroup --net --uts --mount --pid --fork --mount-proc true 2>/dev/null ||
    cannot "this machine forbids namespaces, even to root: in a container, it needs the privilege SYS_ADMIN"
  # Sockets lie in spool/ and have at most 107 characters.
  ((${#DIR} <= 70)) || cannot "the path of $DIR is too long: set SLURM_CLUSTER_DIR to a shorter one"
}

ready() { [ "$(in_node head timeout 60 sinfo -h -N -p main -t idle,alloc,mix -o %N 2>/dev/null | wc -l)" -ge "$NODES" ]; }

up() {
  local number tries
  check_machine
  ! alive head || fail "already up; \`$0 down\` ends it"
  clean
  write_configuration
  head -c 128 /dev/urandom >"$DIR/munge.key"
  chmod 600 "$DIR/munge.key"
  spawn head "$SCRIPT" head-services
  for ((number = 1; number <= NODES; number++)); do boot "n$number"; done
  for ((tries = 0; tries < 1500; tries++)); do
    if ready; then
      say "up: $NODES nodes; try: $0 exec sinfo"
      return
    fi
    sleep 0.2
  done
  in_node head sinfo -N -o '%N %T %E' || true
  tail -n 5 "$DIR"/log/* >&2
  down
  fail "not ready after 5 minutes"
}

# What the login node runs. munged is told to accept a folder that others may write to: it is a throw-away key.
head_services() {
  munged --force --socket="$DIR/munge.sock" --key-file="$DIR/munge.key" --pid-file="$DIR/pid/munged.pid" \
    --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge.seed"
  exec slurmctld -D -f "$DIR/slurm.conf"
}

down() {
  local file
  for file in "$DIR"/pid/n* "$DIR/pid/head"; do [ ! -e "$file" ] || kill_node "${file##*/}"; done
  clean
}

# Removes all but the logs. The kernel may still be ending processes of killed nodes, hence the patience.
clean() {
  local tries
  for ((tries = 0; tries < 600; tries++)); do
    if { [ ! -d "$GROUP" ] || find "$GROUP" -depth -type d -exec rmdir {} +; } &&
      { [ ! -d "$DIR" ] || find "$DIR" -mindepth 1 -maxdepth 1 ! -name log -exec rm -rf {} +; }; then
      return
    fi 2>/dev/null
    sleep 0.1
  done
  fail "cannot remove $GROUP and $DIR"
}

status() {
  alive head || { echo "down"; exit 3; }
  in_node head sinfo -N -p main -o '%N %T %C %G %E'
  in_node head squeue -a
}

command=${1:-help}
shift || true
case $command in
  up | down | status) "$command" ;;
  exec) in_node head "$@" ;;
  node-exec) in_node "$@" ;;
  crash) kill_node "$1" ;;
  boot) boot "$1" ;;
  unshare-node) unshare_node "$@" ;;    # this and the next two: what `up` starts
  init-node) init_node "$@" ;;
  head-services) head_services ;;
  *) usage; exit 2 ;;
esac
