#!/usr/bin/env bash
# What Spark on Kubernetes starts a container with: driver ARGUMENTS, or executor with its facts in the environment
# (both as Spark's KubernetesDriverBuilder and BasicExecutorFeatureStep set them). Everything else is a command; Airflow's
# sends its lineage where the deployment's YAML says.
set -euo pipefail
case "${1:-}" in
    driver)
        exec "$SPARK_HOME/bin/spark-submit" --conf "spark.driver.bindAddress=$SPARK_DRIVER_BIND_ADDRESS" \
            --deploy-mode client "${@:2}"
        ;;
    executor)
        # SPARK_JAVA_OPT_0, SPARK_JAVA_OPT_1, ...: an option each, in this order.
        mapfile -t options < <(env | sed -n 's/^SPARK_JAVA_OPT_\([0-9]*\)=/\1 /p' | sort -n | cut -d ' ' -f 2-)
        exec "$JAVA_HOME/bin/java" "${options[@]}" "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" \
            -cp "${SPARK_CONF_DIR:-$SPARK_HOME/conf}:$SPARK_HOME/jars/*${SPARK_EXTRA_CLASSPATH:+:$SPARK_EXTRA_CLASSPATH}" \
            org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
            --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" --cores "$SPARK_EXECUTOR_CORES" \
            --app-id "$SPARK_APPLICATION_ID" --hostname "$SPARK_EXECUTOR_POD_IP" \
            --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" --podName "$SPARK_EXECUTOR_POD_NAME"
        ;;
    airflow)
        source "$LAKEREC_HOME/scripts/lineage.sh"
        [ -z "${LAKEREC_CONFIG:-}" ] || use_lineage "$LAKEREC_CONFIG"
        exec "$@"
        ;;
    *) exec "$@" ;;
esac
