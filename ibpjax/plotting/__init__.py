"""Pictures of training, certificates and bounds."""
