"""An ETL job from its plan to its manifest."""
