"""When things happen: collection, weight copies, evaluation, round reports. All Lightning glue that is no module."""
