"""What the DAGs share: defaults and the operator that submits a job."""
