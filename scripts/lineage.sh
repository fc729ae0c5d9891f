# Airflow's OpenLineage provider as `lineage` of a deployment's YAML says; sourced by up.sh and by the image's entrypoint.
use_lineage() {
    local transport
    transport=$("$LAKEREC_HOME/.venv/bin/lakerec" spark-conf --config "$1" --lineage) || return
    export AIRFLOW__OPENLINEAGE__TRANSPORT=$transport AIRFLOW__OPENLINEAGE__NAMESPACE=airflow
    export AIRFLOW__OPENLINEAGE__DISABLED=False
    [ -n "$transport" ] || AIRFLOW__OPENLINEAGE__DISABLED=True
}
