"""Registration into the toolkits; each module imports its toolkit, so import the one that you need."""
