"""What knows neither models nor data: files, processes, logs."""
