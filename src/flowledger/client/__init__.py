"""The SDK: speaks HTTP to a flowledger server, and shares nothing with it but domain and errors."""
