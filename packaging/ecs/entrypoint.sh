#!/bin/sh
# Starts the agent of one ECS task. The container's command, such as
#
#     ["--wait", "--wait-timeout", "900"]
#
# is added to what every task needs: where the server is, and the group that Apsis gave to this run.
#
#     PROCSTAR_AGENT_HOST    the server, from the task definition
#     PROCSTAR_AGENT_PORT    its agent port; 59789 if not given
#     PROCSTAR_AGENT_TOKEN   the access token, best from a secret
#     PROCSTAR_AGENT_CERT    PEM file of the server's certificate, or of its CA, if that is not a public one
#     PROCSTAR_GROUP_ID      set by Apsis
set -eu

: "${PROCSTAR_AGENT_HOST:?set it in the task definition: the host of the Apsis server}"
: "${PROCSTAR_GROUP_ID:?is set by Apsis: start this task by a procstar-ecs job}"

exec apsis agent \
    --agent --agent-host "$PROCSTAR_AGENT_HOST" --agent-port "${PROCSTAR_AGENT_PORT:-59789}" \
    --group-id "$PROCSTAR_GROUP_ID" "$@"
