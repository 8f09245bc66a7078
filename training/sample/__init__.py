"""The invented account whose tweets the demo trains on."""
