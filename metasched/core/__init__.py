"""What everything else stands on: errors, random streams, the record of a layer."""
